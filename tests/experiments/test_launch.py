"""What an experiment says before it starts, and that it does not start what cannot fit."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The script as it is, on a machine with so many bytes.
MACHINE = """
import runpy, sys
from unroll.evaluation import expected
from unroll.training.memory import Limits
expected.memory_limits = lambda: Limits(None, {host}, shared=True)
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def unlearn_on_a_machine(host, cwd):
    script = ROOT / "experiments" / "unlearn.py"
    config = f"--config={ROOT / 'configs' / 'digits.py'}:smoke"
    return subprocess.run(
        [sys.executable, "-c", MACHINE.format(host=host), str(script), config],
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_what_cannot_fit_is_refused_in_one_line_before_any_work(tmp_path):
    result = unlearn_on_a_machine(10_000, tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "there are 1 MB; " in last
    assert "lower batch_size" in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "digits-smoke").exists()


def test_time_and_memory_are_printed_before_the_work(tmp_path):
    result = unlearn_on_a_machine(None, tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith("expected: ")]
    begun = [number for number, line in enumerate(lines) if line.startswith("independent retrain")]
    assert len(said) == 1 and said[0] < begun[0]
    # 2 oracles, 2 null retrains, 2 originals, 2 twins; 2 methods on 2 seeds.
    assert "8 trainings of 7 steps and 4 unlearned models" in lines[said[0]]
    assert "nobody says how much there is" in lines[said[0]]
