"""Running an experiment as a user does: a script, a config, and further arguments."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_script(script, config, *arguments, cwd, data_dir="nowhere", timeout=300):
    """The finished process of `experiments/<script> --config=configs/<config>`.

    With `config=None` the arguments are all there is. Without `data_dir` no real data is found.
    """
    chosen = () if config is None else (f"--config={ROOT / 'configs' / config}",)
    return subprocess.run(
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
