"""Trains with recording, deletes a forget set, unlearns by several methods, compares, reports.

  python experiments/unlearn.py --config=configs/digits.py
  python experiments/unlearn.py --config=configs/digits.py:smoke
  python experiments/unlearn.py --config=configs/cifar10.py --config.epochs=4 --workdir=runs/short

Results go to the workdir: config.json, records.jsonl, report.md, report.html, figures/. Models go
to the store; work that is in the store is not done again, so a killed run is simply started again.
"""

import sys
from pathlib import Path

import from_config
import jax
import workdir as workdirs
from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

import unroll
from unroll.errors import DivergenceError, InputError, StoreError
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.records import append_records, read_records
from unroll.report import console_table, write_report
from unroll.report.tensorboard import write_scalars

_CONFIG = config_flags.DEFINE_config_file("config", None, "Path of the config, with :variant.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Results; runs/<config name> by default.")
_STORE = flags.DEFINE_string("store", "runs/store", "Checkpoints, shared by all experiments.")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "runs/compiled", "Compiled programs; '' for none."
)


def run(config, workdir: Path, store: unroll.Store) -> Path:
    """Runs the study of a config and returns the path of its report."""
    study = from_config.build_study(config)
    workdirs.prepare(workdir, config)
    for records in unroll.run_study(study, store, ProgressDisplay().task):
        append_records(workdir / "records.jsonl", records)
    records = read_records(workdir / "records.jsonl")
    report = write_report(records, workdir, title=study.name, config=config.to_dict())
    write_scalars(records, workdir / "tensorboard")
    console = Console()
    # Without a terminal rich assumes 80 columns, which would break the names of the methods.
    Console(width=None if console.is_terminal else 110).print(console_table(records))
    return report


def main(arguments):
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; options start with --")
    logging.set_verbosity(logging.WARNING)  # orbax reports every file at INFO
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", str(Path(_CACHE.value).resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    given = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--config="))
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else workdirs.default_workdir(given)
    try:
        report = run(_CONFIG.value, workdir, unroll.Store(Path(_STORE.value)))
    except (DivergenceError, InputError, StoreError) as error:
        sys.exit(f"error: {error}")
    print(f"report: {report}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
