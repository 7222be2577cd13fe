"""Forget sets of the difficulty study: six, of one size, with their place on both axes."""

import numpy as np
import pytest

import unroll
from unroll.evaluation.difficulty import difficulty_sets
from unroll.evaluation.rows import append_rows, read_rows
from unroll.metrics.entanglement import entanglement_score


def test_sets_and_their_places(tmp_path):
    draw = np.random.default_rng(0)
    scores, features = draw.uniform(size=90), draw.gamma(2.0, size=(90, 4))
    sets = difficulty_sets(scores, features, 10)
    assert [each.description for each in sets] == [
        "low memorization", "medium memorization", "high memorization",
        "low entanglement", "medium entanglement", "high entanglement",
    ]  # fmt: skip
    assert {len(each.ids) for each in sets} == {10}
    low, medium, high = sets[:3]
    assert low.memorization < medium.memorization < high.memorization
    assert high.memorization == pytest.approx(np.sort(scores)[-10:].mean())
    assert sets[3].entanglement < sets[4].entanglement < sets[5].entanglement
    for each in sets:
        rest = np.delete(features, each.ids, axis=0)
        assert each.entanglement == entanglement_score(rest, features[each.ids])
    append_rows(tmp_path / "sets.jsonl", sets)
    assert read_rows(tmp_path / "sets.jsonl", type(low)) == sets


def test_too_small_a_training_set():
    with pytest.raises(unroll.InputError, match="need 12 examples"):
        difficulty_sets(np.arange(10.0), np.ones([10, 2]), 4)
