"""Running an experiment as a user does: a script, a config, and further arguments."""

import os
import subprocess
import sys
from pathlib import Path

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


def one_line_error(result):
    """The last line on stderr of a script that refused its input, which must come without a trace.

    A refusal comes before any work, so nothing may lie in the workdir either.
    """
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    left = list(Path(result.cwd).glob("runs/*-smoke"))
    assert not left, left
    return result.stderr.strip().splitlines()[-1]
