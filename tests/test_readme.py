"""What the README promises: its example runs, its files exist, its configs are all of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_is_short(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    errors = {line.split()[0]: float(line.split()[-1]) for line in lines}
    assert set(errors) == {"single_gradient", "taylor(order=2)"}
    assert errors["taylor(order=2)"] < 0.1 * errors["single_gradient"]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_are_named(path):
    assert f"`{path.stem}`" in README


def test_commands_name_existing_files():
    for file in re.findall(r"(?:experiments|configs|benchmarks)/\w+\.py", README):
        assert (ROOT / file).exists(), file
