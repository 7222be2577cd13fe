"""Trains with recording, deletes a forget set, unlearns by several methods, compares, reports.

  python experiments/unlearn.py --config=configs/digits.py
  python experiments/unlearn.py --config=configs/digits.py:smoke
  python experiments/unlearn.py --config=configs/cifar10.py --config.epochs=4 --workdir=runs/short

Results go to the workdir: config.json, records.jsonl, report.md, report.html, figures/. Models go
to the store; work that is in the store is not done again, so a killed run is simply started again.
What each of them depends on is written beside it, see `unroll.deletion.purge`.
"""

from pathlib import Path

import from_config
import launch
import ml_collections
import workdir as workdirs
from absl import flags
from rich.console import Console
from studies import run_recorded

import unroll
from unroll.deletion.lineage import record_folder
from unroll.evaluation.plans import study_work
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.records import append_records, read_records
from unroll.report import console_table, write_report
from unroll.report.tensorboard import write_scalars


def run(config: ml_collections.ConfigDict, workdir: Path, store: unroll.Store) -> Path:
    """Runs the study of a config and returns the path of its report."""
    study = from_config.build_study(config)
    launch.announce(study_work(study, store))
    workdirs.prepare(workdir, config)
    record_folder(workdir, {study.train.fingerprint: None, study.test.fingerprint: None})
    for records in run_recorded(study, store, ProgressDisplay().task):
        append_records(workdir / "records.jsonl", records)
    records = read_records(workdir / "records.jsonl")
    report = write_report(records, workdir, title=study.name, config=config.to_dict())
    write_scalars(records, workdir / "tensorboard")
    console = Console()
    # Without a terminal rich assumes 80 columns, which would break the names of the methods.
    Console(width=None if console.is_terminal else 110).print(console_table(records))
    return report


if __name__ == "__main__":
    flags.adopt_module_key_flags(launch)  # so that --help shows them
    launch.launch(run)
