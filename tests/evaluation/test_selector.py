"""The selector: it finds what is best by the value it states, and tries as much as it says."""

import dataclasses

import numpy as np
import pytest

import unroll
from unroll.evaluation.records import ORIGINAL
from unroll.evaluation.selector import select_methods
from unroll.evaluation.study import Study, run_study
from unroll.evaluation.work import unlearning
from unroll.memorization.refinement import random_scores
from unroll.memorization.rum import rum

SCORES = random_scores(120, seed=0)
LABELS = "random_label(learning_rate=0.05, epochs=2, batch_size=40)"
CANDIDATES = (ORIGINAL, "finetune(learning_rate=0.02, batch_size=40)", LABELS)


@pytest.fixture(scope="module")
def study(blobs, mlp_spec):
    train, test = blobs
    return Study(
        name="development",
        train=train,
        test=test,
        spec=mlp_spec,
        forget=np.arange(5, 113, 9),
        forget_description="ids",
        model_name="mlp",
        methods=(),
        epochs=2,
        batch_size=16,
        train_seeds=(7, 8),
        independents=2,
        record_every=100,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return unroll.Store(tmp_path_factory.mktemp("store"))


def tow_of(study, texts, store):
    """The ordinary study's tug of war against the twin, by seed."""
    method = rum(SCORES, [unroll.methods.method(text) for text in texts])
    single = dataclasses.replace(study, methods=(method,))
    return {
        str(record.train_seed): record.value
        for batch in run_study(single, store)
        for record in batch
        if (record.method, record.metric, record.oracle) == ("rum", "tow", "twin")
    }


def test_greedy_tries_each_candidate_for_each_part_and_keeps_the_best(study, store):
    found = select_methods(study, SCORES, CANDIDATES, store=store)
    assert [trial.part for trial in found.trials] == [1] * 3 + [2] * 3 + [3] * 3
    chosen = (ORIGINAL,) * 3
    for part in (1, 2, 3):
        tried = found.trials[3 * (part - 1) : 3 * part]
        expected = [(*chosen[: part - 1], text, *chosen[part:]) for text in CANDIDATES]
        assert [tuple(trial.methods) for trial in tried] == expected
        best = int(np.argmax([trial.value for trial in tried]))
        chosen = expected[best]
    assert found.methods == chosen
    nothing = found.trials[0]
    assert nothing.example_gradients == nothing.seconds == 0 and set(nothing.values) == {"7", "8"}
    assert found.example_gradients > 0


def test_the_value_of_the_last_part_is_the_tug_of_war_of_a_study(study, store):
    found = select_methods(study, SCORES, CANDIDATES, store=store)
    last = found.trials[-1]
    assert last.values == pytest.approx(tow_of(study, last.methods, store), abs=1e-12)
    assert last.value == pytest.approx(np.mean(list(last.values.values())))


def test_exhaustive_search_is_at_least_as_good(study, store):
    few = (CANDIDATES[0], CANDIDATES[2])
    greedy = select_methods(study, SCORES, few, count=2, store=store)
    every = select_methods(study, SCORES, few, count=2, search="exhaustive", store=store)
    assert len(every.trials) == 4 and {trial.part for trial in every.trials} == {0}
    assert max(trial.value for trial in every.trials) >= greedy.trials[-1].value
    assert every.methods in {tuple(trial.methods) for trial in every.trials}


def test_independent_oracles(study, store):
    twin, other = (
        select_methods(study, SCORES, CANDIDATES[:1], oracle=oracle, store=store)
        for oracle in ("twin", "independent")
    )
    assert twin.methods == other.methods == (ORIGINAL,) * 3
    assert twin.trials[0].value != other.trials[0].value


def test_what_diverges_is_not_chosen(study, store):
    broken = "gradient_ascent(learning_rate=1e30, epochs=5)"
    found = select_methods(study, SCORES, (broken, ORIGINAL), store=store)
    assert found.methods == (ORIGINAL,) * 3
    assert found.trials[0].value is None and "seed 7" in found.trials[0].note
    with pytest.raises(unroll.DivergenceError, match="every candidate diverged"):
        select_methods(study, SCORES, (broken,), store=store)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(search="random"), "unknown search"),
        (dict(oracle="both"), "unknown oracle"),
        (dict(candidates=()), "one or more"),
        (dict(candidates=(ORIGINAL, ORIGINAL)), "each of them once"),
        (dict(candidates=("tailor",)), "unknown method"),
        (dict(candidates=("replay",)), "needs the recorded run"),
    ],
)
def test_mistakes_cost_nothing(study, tmp_path, options, message):
    arguments = {"candidates": CANDIDATES, **options}
    with pytest.raises(unroll.InputError, match=message):
        select_methods(study, SCORES, store=unroll.Store(tmp_path), **arguments)
    assert not list(tmp_path.iterdir())


def test_rum_is_priced_as_the_sum_of_its_steps(study):
    def multiple(method):
        return unlearning(method, study.spec, study.train, study.schedule(0), study.epochs).multiple

    tuned = unroll.methods.method(CANDIDATES[1])
    assert multiple(rum(SCORES, tuned)) == pytest.approx(3 * multiple(tuned)) != 0
    nothing = unroll.methods.method(ORIGINAL)
    assert multiple(rum(SCORES, [nothing, tuned, nothing])) == pytest.approx(multiple(tuned))
    assert multiple(rum(SCORES, nothing)) == 0
