"""The verification of a ledger as a user runs it: made, verified again elsewhere, tampered with."""

import json

import pytest
from run_script import run_script

SMOKE = "deletion/verify_digits.py:smoke"


def verify(*arguments, cwd):
    return run_script("verify_deletion.py", SMOKE, *arguments, cwd=cwd)


def last_line(result):
    assert result.returncode != 0 and "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_a_ledger_is_made_verified_and_verified_elsewhere(tmp_path):
    result = verify(cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = tmp_path / "runs" / "verify_digits-smoke"
    found = json.loads((made / "verification.json").read_text())
    assert found["problems"] == [] and [row["holds"] for row in found["entries"]] == [True] * 3
    assert [(row["absent"], row["requests"]) for row in found["entries"]] == [
        *[(0, 0), (1, 1), (1, 1)]
    ]
    assert "3 entries verified; publish the head" in result.stdout
    ledger, head = made / "ledger" / "ledger.jsonl", found["head"]
    content = ledger.read_bytes()
    other = tmp_path / "elsewhere"
    other.mkdir()
    auditor = (f"--config.ledger={made / 'ledger'}", f"--config.key_folder={made / 'keys'}")
    anchored = (*auditor, f"--config.expected_head={head}", "--workdir=anchored")
    again = verify(*anchored, cwd=other)
    assert again.returncode == 0, again.stderr
    assert json.loads((other / "anchored" / "verification.json").read_text())["head"] == head

    ledger.write_bytes(content.replace(b'"method":"replay"', b'"method":"retain"', 1))
    assert "fails at line 2: wrong signature" in last_line(verify(*anchored, cwd=other))
    ledger.write_bytes(content)
    corrupted = "--config.corruption=mislabel(fraction=0.1, seed=0)"
    message = last_line(verify(*auditor, corrupted, "--workdir=other", cwd=other))
    assert "entry 0 fails at remaining data: FAILS: what remains was changed" in message
    assert "## Entry 2: replay: FAILS" in (other / "other" / "verification.md").read_text()


@pytest.mark.slow
def test_a_ledger_with_a_sisa_system_is_made_and_verified(tmp_path):
    result = run_script("verify_deletion.py", "deletion/verify_digits_sisa.py:smoke", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    made = tmp_path / "runs" / "verify_digits_sisa-smoke"
    rows = json.loads((made / "verification.json").read_text())["entries"]
    methods = ["train", "replay", "replay", *["sisa(shards=2, slices=1)"] * 3]
    assert [row["method"] for row in rows] == methods
    assert all(row["holds"] for row in rows)
    assert [(row["absent"], row["requests"]) for row in rows] == [(0, 0), (1, 1), (1, 1)] * 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.method=taylor", "taylor is not exact; choose replay or retrain"),
        ("--config.ledger=nowhere", "give both ledger and key_folder"),
        pytest.param("--config.sisa=replay", "is not of the form sisa(", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(tmp_path, argument, message):
    assert message in last_line(verify(argument, cwd=tmp_path))
    assert not (tmp_path / "runs" / "verify_digits-smoke").exists()
