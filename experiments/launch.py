"""What every experiment script shares: flags, compilation cache, estimates, one-line errors."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import ml_collections
import workdir as workdirs
from absl import app, flags, logging
from ml_collections import config_flags

import unroll
from unroll.errors import DivergenceError, InputError, StoreError
from unroll.evaluation.expected import estimate
from unroll.evaluation.progress import ProgressDisplay
from unroll.evaluation.work import Work

_CONFIG = config_flags.DEFINE_config_file("config", None, "Path of the config, with :variant.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Results; runs/<config name> by default.")
_STORE = flags.DEFINE_string("store", "runs/store", "Checkpoints, shared by all experiments.")
_CACHE = flags.DEFINE_string("compilation_cache", "runs/compiled", "Compiled programs, or ''.")

Run = Callable[[ml_collections.ConfigDict, Path, unroll.Store], Path]


def launch(run: Run) -> None:
    """Parses the flags and calls `run(config, workdir, store)`, which returns a report's path."""

    def main(arguments):
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected argument {arguments[1]!r}; options start with --")
        logging.set_verbosity(logging.WARNING)  # orbax reports every file at INFO
        if _CACHE.value:
            jax.config.update("jax_compilation_cache_dir", str(Path(_CACHE.value).resolve()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        workdir = Path(_WORKDIR.value) if _WORKDIR.value else workdirs.default_workdir(name)
        try:
            report = run(_CONFIG.value, workdir, unroll.Store(Path(_STORE.value)))
        except (DivergenceError, InputError, StoreError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on from here")
        print(f"report: {report}")

    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse)


def announce(works: Iterable[Work]) -> None:
    """Prints the time and memory that the works are expected to take, before they start.

    Raises:
      InputError: if one of them does not fit in memory.
    """
    with ProgressDisplay().task("estimate") as report:
        expected = estimate(works, progress=report)
    print(expected, file=sys.stderr, flush=True)


def _parse(arguments: list[str]) -> list[str]:
    """absl's parser with every mistake in one line, those of the config's file and fields too."""
    try:
        remaining = flags.FLAGS(arguments)
        _ = _CONFIG.value.to_dict  # a missing file shows when the config is first used
        return remaining
    except flags.Error as error:
        sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}; try --help")
    except OSError:
        name = config_flags.get_config_filename(flags.FLAGS["config"])
        sys.exit(f"error: there is no config {name}; see configs/")
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: unknown config field: {' '.join(str(error).split())}")
