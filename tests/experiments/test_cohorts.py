"""The experiment on cohorts as a user runs it, and what it says about mistakes."""

import json
import re

import pytest
from run_script import ROOT, run_script

import unroll
from unroll.evaluation.cohorts import CohortStudy, run_cohort_study
from unroll.report.cohorts import cohort_figure, cohort_page

CONFIG = f"--config={ROOT / 'configs' / 'unrolling' / 'cohorts.py'}:smoke"


def cohorts(*arguments, cwd):
    return run_script("cohorts.py", None, *arguments, cwd=cwd)


def read(workdir):
    return [json.loads(line) for line in (workdir / "records.jsonl").read_text().splitlines()]


def test_smoke_run_and_its_repetition(tmp_path):
    result = cohorts(CONFIG, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "cohorts-smoke"
    assert "report: runs/cohorts-smoke/cohorts.md" in result.stdout
    rows = read(workdir)
    errors = {}
    for row in rows:
        if row["metric"] == "relative_verification_error":
            name = row["method"] + str(row["hyperparameters"].get("order", ""))
            errors.setdefault((name, row["forget"]), []).append(row["value"])
    for union in ("cohorts(union=1)", "cohorts(union=2)"):
        assert errors["original", union] == [1.0, 1.0]
        assert errors["retrain", union] == [0.0, 0.0]
        assert min(errors["retrain_vs_retrain", union]) > 1
        # One epoch of 200 examples: order 1 is good to a percent, order 2 to much less.
        assert max(errors["cohort_tangents1", union]) < 0.1
        assert max(errors["cohort_tangents2", union]) < max(errors["cohort_tangents1", union])
    costs = {row["metric"] for row in rows if row["forget"] == "cohorts(registered=3)"}
    assert len(costs) == 3
    page = (workdir / "cohorts.md").read_text()
    assert re.search(r"\| 2 \| 4 \|", page) and "(cohorts.png)" in page
    assert (workdir / "cohorts.png").stat().st_size > 1000

    # Everything but the deletions comes from the store, the seconds of the tangents included.
    again = cohorts(CONFIG, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    timings = ("seconds", "cost_ratio_seconds")
    kept = [
        [{k: r[k] for k in r if k not in timings} for r in found] for found in (rows, read(workdir))
    ]
    assert kept[0] == kept[1]


MISTAKES = {
    "too many in a union": ("--config.union_sizes=(1,7)", "union of 7 cohorts of 3"),
    "kind": ("--config.cohorts=shards(count=3)", "unknown cohorts 'shards'"),
    "no groups": ("--config.cohorts=groups", "has no groups"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, mistake):
    argument, message = MISTAKES[mistake]
    result = cohorts(CONFIG, argument, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr.strip().splitlines()[-1], result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "cohorts-smoke").exists()


def study(blobs, **options):
    train, test = blobs
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(8,)))
    cohorts = {"a": [1, 2], "b": [30], "c": [60, 61]}
    settings = dict(epochs=1, batch_size=24, train_seeds=(0,), union_sizes=(1,), orders=(1,))
    fields = dict(name="tiny", train=train, test=test, spec=spec, cohorts=cohorts, model_name="mlp")
    return CohortStudy(**{**fields, **settings, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(orders=()), "orders of the tangents"),
        (dict(orders=(1, 3)), "orders of the tangents"),
        (dict(union_sizes=()), "at least one size"),
        (dict(union_sizes=(4,)), "union of 4 cohorts of 3"),
        (dict(train_seeds=(-1,)), "training seeds"),
    ],
)
def test_a_study_that_cannot_work_is_refused(blobs, options, message):
    with pytest.raises(unroll.InputError, match=message):
        study(blobs, **options)


def test_tangents_that_diverge_are_missing_values(blobs):
    """A dead input under Adam without eps_root: the models are fine, the tangents are not."""
    train, test = blobs
    dead = train.inputs.copy()
    dead[:, 0] = 0
    data = unroll.data.Dataset("dead", dead, train.labels, 3), test
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,)),
        optimizer=unroll.optax_call("adam", 0.01),
    )
    records = [row for rows in run_cohort_study(study(data, spec=spec)) for row in rows]
    values = {r.method: r for r in records if r.metric == "relative_verification_error"}
    assert values["original"].value == 1 and values["retrain"].value == 0
    missing = values["cohort_tangents"]
    assert missing.value is None and "eps_root" in missing.note
    page = cohort_page(records, "tiny")
    assert "| n/a |" in page and "eps_root" in page
    cohort_figure(records)
    with pytest.raises(unroll.InputError, match="no deletion of cohorts"):
        cohort_page([r for r in records if "registered" in r.forget], "tiny")
