"""A row of SISA in an ordinary study as a user runs it, and a config that asks for nonsense."""

import json

import from_config
import numpy as np
import pytest
import studies
from run_script import one_line_error, run_script, smoke_config

import unroll
from unroll.deletion.lineage import dependence
from unroll.errors import InputError

CONFIG = "deletion/sisa_row_digits.py"
SMOKE = f"{CONFIG}:smoke"


def check_row(workdir, store, seeds):
    rows = [json.loads(line) for line in (workdir / "records.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["method"] == "sisa"]
    errors = [row["value"] for row in own if row["metric"] == "relative_verification_error"]
    assert errors == [0.0] * seeds
    assert all(row["note"] for row in own if row["value"] is None)
    assert "not applicable: SISA (2 shards of 1 slices)" in (workdir / "report.md").read_text()
    assert (workdir / "lineage.json").exists()
    assert list((store / "lineage" / "arrays").iterdir())


def test_a_config_asks_for_the_row_by_its_name():
    study = from_config.build_study(smoke_config(CONFIG))
    (taylor, sisa) = study.compared
    assert (taylor.own_kind, sisa.own_kind) == (False, True)
    assert (sisa.hyperparameters["shards"], sisa.hyperparameters["slices"]) == (2, 1)


def test_what_a_study_trains_is_recorded_before_it_is_trained(tmp_path, monkeypatch):
    study, store = from_config.build_study(smoke_config(CONFIG)), unroll.Store(tmp_path)
    monkeypatch.setattr(unroll, "run_study", lambda *arguments: iter([arguments]))
    assert list(studies.run_recorded(study, store, None)) == [(study, store, None)]
    # Two independents and a null, original and twin for each of two seeds.
    kept = [path.name for path in tmp_path.iterdir() if len(path.name) == 64]
    assert len(kept) == 2 + 2 + 2 * 2
    everyone = np.arange(len(study.train))
    parts = [dependence(store, each).parts[study.train.fingerprint] for each in kept]
    carriers = [ids for ids in parts if np.isin(study.forget, ids).any()]
    assert [ids.tolist() for ids in carriers] == [everyone.tolist()] * 2
    assert all(len(ids) in (200, 198) for ids in parts)


@pytest.mark.slow
def test_a_study_with_a_row_as_a_user_runs_it(tmp_path):
    result = run_script("unlearn.py", SMOKE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    runs = tmp_path / "runs"
    check_row(runs / "sisa_row_digits-smoke", runs / "store", 2)
    assert "sisa" in result.stdout


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("sisa(shard=2)", "sisa: unknown option 'shard'; the options are shards, slices"),
        ("sisa(shards=0)", "shards"),
        ("sisa(aggregation='mean')", "unknown aggregation 'mean'"),
    ],
)
def test_mistakes_cost_nothing(method, message):
    config = smoke_config(CONFIG)
    config.methods = (method,)
    with pytest.raises(InputError, match=message):
        from_config.build_study(config)


@pytest.mark.slow
def test_a_mistake_is_one_line(tmp_path):
    argument = "--config.methods=('sisa(shards=0)',)"
    assert "shards" in one_line_error(run_script("unlearn.py", SMOKE, argument, cwd=tmp_path))
