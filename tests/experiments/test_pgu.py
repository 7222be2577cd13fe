"""The experiments on projected-gradient unlearning as a user runs them: their smoke forms."""

import json

import pytest
from run_script import one_line_error, run_script

IMAGES = "--config.dataset=random_images(num_train=96, num_test=32, size=8, num_classes=4)"


def launch(script, config, *arguments, cwd, dataset=IMAGES):
    return run_script(script, f"pgu/{config}:smoke", dataset, *arguments, cwd=cwd)


def points(workdir):
    return [json.loads(line) for line in (workdir / "points.jsonl").read_text().splitlines()]


def test_removal_of_a_class(tmp_path):
    result = launch("unlearn.py", "class_removal.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "runs/class_removal-smoke/records.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = {row["method"] for row in rows if row["value"] is not None}
    assert {"projected_gradient", "gradient_ascent"} <= found


def test_a_sequence_of_deletions(tmp_path):
    result = launch("removal_sequence.py", "removal_sequence.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "removal_sequence-smoke"
    rows = points(workdir)
    assert len(rows) == 2 * 2 * 2  # labels, seeds, deletions
    first, second = (
        row["values"] for row in rows if row["seed"] == 0 and row["label"] == "subtract"
    )
    # Nothing has drifted before the first deletion; after it the features are another model's.
    assert first["drift"] == 0 and second["drift"] > 1e-6
    assert set(first) == {"part", "forgotten", "retained", "test", "clipped", "drift"}
    for name in ("progressions.md", "progressions.png"):
        assert (workdir / name).stat().st_size > 500


def test_attack(tmp_path):
    result = launch("attack.py", "attack.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = (tmp_path / "runs/attack-smoke/attack.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    targets = {row["target"].split("(")[0] for row in rows}
    assert targets == {"original", "retrain", "projected_gradient"} and len(rows) == 3 * 2
    assert "| retrain |" in (tmp_path / "runs/attack-smoke/attack.md").read_text()


def test_depoisoning(tmp_path):
    result = launch("depoisoning.py", "depoisoning.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = points(tmp_path / "runs" / "depoisoning-smoke")
    assert {(row["label"], row["position"]) for row in rows} == {
        ("retrain", 0),
        ("retrain", 2),
        ("original", 0),
        ("energy 0.9", 1),
        ("energy 0.9", 2),
    }
    assert all(set(row["values"]) == {"poison", "recovered", "clean", "test"} for row in rows)


@pytest.mark.parametrize(
    ("script", "config", "argument", "message"),
    [
        ("removal_sequence.py", "removal_sequence.py", "--config.sequences=(('a','b'),)", "three"),
        ("attack.py", "attack.py", "--config.folds=3", "choose between 2 and models=2"),
        ("depoisoning.py", "depoisoning.py", "--config.repairs=(('a','tailor'),)", "tailor"),
    ],
)
def test_mistakes_are_one_line(tmp_path, script, config, argument, message):
    result = launch(script, config, argument, cwd=tmp_path)
    assert message in one_line_error(result)
