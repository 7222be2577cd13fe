"""Running an experiment as a user does, a script, a config, and further arguments; or in here."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import unroll

ROOT = Path(__file__).parents[2]


def run_script(script, config, *arguments, cwd, data_dir="nowhere", timeout=300):
    """The finished process of `experiments/<script> --config=configs/<config>`, with its `cwd`.

    With `config=None` the arguments are all there is. Without `data_dir` no real data is found.
    """
    chosen = () if config is None else (f"--config={ROOT / 'configs' / config}",)
    result = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / script), *chosen, *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "TFDS_DATA_DIR": str(data_dir),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    result.cwd = cwd
    return result


def smoke_config(config):
    """The smoke form of `configs/<config>`."""
    path = ROOT / "configs" / config
    description = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module.get_config("smoke")


def run_here(script, config, folder, **changes):
    """The workdir after `run` of a script on a smoke form, with some fields changed.

    Without a process of its own: nothing is started, and programs compile as those of tests do.
    """
    chosen, workdir = smoke_config(config), Path(folder) / "workdir"
    chosen.update(changes)
    run = importlib.import_module(script).run
    assert run(chosen, workdir, unroll.Store(Path(folder) / "store")).parent == workdir
    return workdir


def one_line_error(result):
    """The last line on stderr of a script that refused its input, which must come without a trace.

    A refusal comes before any work, so nothing may lie in the workdir either.
    """
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    left = list(Path(result.cwd).glob("runs/*-smoke"))
    assert not left, left
    return result.stderr.strip().splitlines()[-1]
