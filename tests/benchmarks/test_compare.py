"""The benchmark's rows on tiny work, its arithmetic, its table, and its command."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import compare  # noqa: E402
import machine as machines  # noqa: E402
import table  # noqa: E402
import timing  # noqa: E402
from cases import make_case  # noqa: E402
from work import (  # noqa: E402
    DifferentWorkError,
    Goal,
    NotHereError,
    Outcome,
    Settings,
    Work,
    make_row,
    missing_row,
)
from works import WORKS  # noqa: E402

SMOKE = Settings(repetitions=1, smoke=True)
NEEDS = {"curvature": "pyhessian", "multiples": None}


def marked(work):
    """A script for each turn takes seconds, and so does compiling a residual network."""
    slow = work.name.startswith(("startup", "resnet"))
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(work, id=work.name, marks=marks)


@pytest.mark.parametrize("work", [marked(work) for work in WORKS])
def test_row_runs_on_tiny_work(work):
    if work.accelerator:
        with pytest.raises(NotHereError, match="no accelerator"):
            work.measure(SMOKE)
        return
    needed = NEEDS.get(work.measured_by.split(":")[0], "torch")
    if needed is not None and importlib.util.find_spec(needed) is None:
        pytest.skip(f'{needed} is not installed: pip install -e ".[peers]"')
    outcome = work.measure(SMOKE)
    assert len(outcome.ours) == len(outcome.theirs) == 1
    assert min(*outcome.ours, *outcome.theirs) > 0
    assert outcome.check and outcome.compilation_seconds >= 0


def test_names_are_told_apart():
    assert len({work.name for work in WORKS}) == len(WORKS)


def test_missing_peer_is_a_row_that_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # import then fails as if it were not installed
    for name in ("peers", "steps"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(NotHereError, match="no torch"):
        WORKS[0].measure(SMOKE)


def test_ratio_and_verdict():
    """A speed-up is theirs over ours, a cost ours over theirs; ranges are over turns."""
    machine = machines.describe()
    settings = Settings(repetitions=3)
    faster = Work("a", "", "", "ms a step", "", goal=Goal(reach=2))
    row = make_row(faster, settings, machine, Outcome([1, 2, 4], [4, 6, 6], "same", "", 0.0), 1.0)
    assert row.ours == [1000, 2000, 4000]
    assert (row.ratio, row.ratio_range, row.met) == (3.0, [1.5, 4.0], True)
    dearer = Work("a", "", "", "s", "", goal=Goal(reach=2, at_most=True))
    row = make_row(dearer, settings, machine, Outcome([9, 9, 9], [3, 4, 5], "same", "", 0.0), 1.0)
    assert (row.ratio, row.ratio_range, row.met) == (2.25, [1.8, 3.0], False)
    elsewhere = dataclasses.replace(settings, device="gpu")
    outcome = Outcome([9], [3], "same", "", 0.0)
    assert make_row(faster, elsewhere, machine, outcome, 1.0).met is None
    anywhere = dataclasses.replace(faster, goal=Goal(reach=2, anywhere=True))
    assert make_row(anywhere, elsewhere, machine, outcome, 1.0).met is False


def test_turns_alternate_after_one_of_each_that_is_not_counted():
    order, clock = [], iter(range(100))

    def side(name):
        def turn():
            order.append(name)
            return next(clock)

        return turn

    ours, theirs = timing.turn_about(side("ours"), side("theirs"), Settings(repetitions=2))
    assert order == ["ours", "theirs"] * 3
    assert (ours, theirs) == ([2, 4], [3, 5])


def test_different_work_is_refused():
    assert timing.agree("losses", [1.0, 2.0], [1.0, 2.0], 1e-6) == "losses agree to 0e+00"
    for other in ([1.0], [1.0, 2.1], [1.0, float("nan")]):
        with pytest.raises(DifferentWorkError, match="losses"):
            timing.agree("losses", [1.0, 2.0], other, 1e-3)


@pytest.mark.parametrize(
    "case", [("mlp", {}), ("small_cnn", {}), ("resnet18", {"width": 4})], ids=lambda case: case[0]
)
def test_peers_have_the_same_logits(case):
    """The two networks are one function: weights are copied, layouts and norms agree."""
    torch = pytest.importorskip("torch")
    name, arguments = case
    case = make_case(SMOKE, name, **arguments)
    state, inputs = case.initial(3), case.data.inputs[:5]
    ours = case.spec.model.apply({"params": state.params}, inputs)
    given = torch.from_numpy(np.array(inputs))
    given = given.permute(0, 3, 1, 2) if case.images else given
    theirs = case.peer(3)(given).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # float32, other sums
    broken = {**state.params, "head": {"dense": {"kernel": np.zeros((3, 10)), "bias": 0}}}
    import peers

    with pytest.raises(Exception, match="parameter|reshape"):
        peers.copy_weights(broken, case.peer())


def test_table_shows_the_last_row_of_this_machine():
    machine = machines.describe()
    other = {**machine, "cpu": "another"}
    work = WORKS[0]
    slow, fast = Outcome([3], [3], "same", "", 0.0), Outcome([1], [3], "same", "", 0.0)
    settings = Settings(repetitions=1)
    rows = [
        make_row(work, settings, machine, slow, 1.0),
        make_row(work, settings, {**machine, "load": 9.9}, fast, 1.0),
        make_row(work, settings, other, slow, 1.0),
        make_row(work, SMOKE, machine, slow, 1.0),
        missing_row(WORKS[1], settings, machine, "no torch"),
    ]
    shown = table.latest(rows, machine, smoke=False)
    assert {name: row.ratio for name, row in shown.items()} == {work.name: 3.0, WORKS[1].name: None}
    text = table.markdown(shown, machine)
    assert "3.00 [3.00, 3.00] | at least 4, aim 6 | no |" in text
    assert "not run here: no torch" in text
    assert text.count("not measured") == len(WORKS) - 2
    assert table.console_table(shown, machine).row_count == len(WORKS)


def run_command(*arguments, out):
    return subprocess.run(
        [sys.executable, str(FOLDER / "compare.py"), "--out", str(out), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_writes_rows_and_table(tmp_path):
    done = run_command("--smoke", "--repetitions", "2", "--rows", "taylor_mlp", out=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert row["work"] == "taylor_mlp" and len(row["ours"]) == 2 and row["met"] is None
    assert "| smoke |" in (tmp_path / "table.md").read_text()
    assert "not measured" in done.stdout


def test_command_refuses_an_unknown_row(capsys):
    with pytest.raises(SystemExit):
        compare.parse(["--rows", "mlp"])
    assert "unknown row 'mlp'" in capsys.readouterr().err
