"""A row of SISA in an ordinary study as a user runs it, and a config that asks for nonsense."""

import json

import pytest
from run_script import one_line_error, run_script

SMOKE = "deletion/sisa_row_digits.py:smoke"


def test_the_row_is_in_records_and_report_with_words(tmp_path):
    result = run_script("unlearn.py", SMOKE, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs" / "sisa_row_digits-smoke"
    rows = [json.loads(line) for line in (workdir / "records.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["method"] == "sisa"]
    errors = [row["value"] for row in own if row["metric"] == "relative_verification_error"]
    assert errors == [0.0, 0.0]
    assert all(row["note"] for row in own if row["value"] is None)
    assert "not applicable: SISA (2 shards of 1 slices)" in (workdir / "report.md").read_text()
    assert "sisa" in result.stdout and (workdir / "lineage.json").exists()
    assert list((tmp_path / "runs" / "store" / "lineage" / "arrays").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("sisa(shard=2)", "sisa: unknown option 'shard'; the options are shards, slices"),
        ("sisa(shards=0)", "shards"),
        ("sisa(aggregation='mean')", "unknown aggregation 'mean'"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, method, message):
    argument = f"--config.methods=({method!r},)"
    assert message in one_line_error(run_script("unlearn.py", SMOKE, argument, cwd=tmp_path))
