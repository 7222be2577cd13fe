"""What an experiment is expected to take: sums, sentences, refusals, and plans of whole studies."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

import unroll
from unroll.data.cohorts import random_cohorts
from unroll.evaluation import expected
from unroll.evaluation.cohorts import CohortStudy, run_cohort_study
from unroll.evaluation.expected import Estimate, estimate
from unroll.evaluation.plans import cohort_work, study_work
from unroll.evaluation.study import Study, run_study
from unroll.evaluation.work import (
    Work,
    curvature,
    ensemble,
    ensemble_bytes,
    metagradient,
    metagradient_bytes,
    series,
    series_bytes,
    tangents,
    training,
    unlearning,
)
from unroll.methods import method
from unroll.training.estimate import footprint
from unroll.training.memory import Bytes, Limits, program_bytes
from unroll.training.step import train_step
from unroll.unrolling import metagradients as backward
from unroll.unrolling.outcomes import moving_leaves

ROOMY = Limits(device=None, host=10**12, shared=True)


@pytest.fixture
def recipe(blobs, mlp_spec):
    train, _ = blobs
    return mlp_spec, train, unroll.data.make_schedule(0, len(train), batch_size=16, epochs=2)


@pytest.fixture
def hundredths(monkeypatch):
    """Every step is measured to take 0.01 s; the calls are kept."""
    calls = []

    def seconds(spec, dataset, schedule, clock):
        del clock
        calls.append((spec, dataset, schedule))
        return 0.01

    monkeypatch.setattr(expected, "step_seconds", seconds)
    return calls


def test_seconds_are_steps_times_multiples(recipe, hundredths):
    spec, train, schedule = recipe
    steps = len(schedule)
    works = [
        training(*recipe, count=3),
        series(*recipe, 2, count=2),  # 6 gradients a step
        metagradient(*recipe, 4),  # 2 + 2 * 4
        metagradient(*recipe, 1, share=0.5),  # half of 4
        curvature(*recipe, examples=16, count=5),  # 40 products of 2 gradients on one batch
        training(spec, train, schedule[:4]),
    ]
    found = estimate(works, limits=ROOMY)
    steps_in_all = steps * (3 + 2 * 6 + 10 + 2) + 5 * 80 + 4
    assert found.seconds == pytest.approx(0.01 * steps_in_all)
    assert len(hundredths) == 1  # one kind of recipe, measured on the longest schedule
    assert hundredths[0][2] is schedule
    assert found.counts["training"] == (4, 4, steps)


def test_recipes_that_differ_in_numbers_are_measured_once(recipe, hundredths):
    spec, *rest = recipe
    slower = dataclasses.replace(spec, optimizer=unroll.optax_call("sgd", learning_rate=0.01))
    heavy = [unroll.TrainSpec(spec.model, unroll.Objective(l2=l2)) for l2 in (0.1, 0.2)]
    estimate([training(s, *rest) for s in (spec, slower, *heavy)], limits=ROOMY)
    # With and without penalty; rates and strengths do not change what a step costs.
    assert [call[0] for call in hundredths] == [spec, heavy[0]]


def test_the_sentence(recipe):
    counts = {"training": (36, 1410, 1410), "series": (1, 9, 9), "unlearned model": (24, 1, 1)}
    limits = Limits(None, 22 * 10**9, shared=True)
    found = Estimate(240.0, Bytes(5 * 10**8, 10**8), limits, counts, at_most=False)
    assert str(found) == (
        "expected: about 4 min for 36 trainings of 1410 steps, 1 series and 24 unlearned models, "
        "compilation and evaluation not counted; arrays take 0.6 GB of 22 GB of memory"
    )
    unknown = dataclasses.replace(found, limits=Limits(None, None, False), at_most=True)
    assert "at most 4 min" in str(unknown)
    assert "0.5 GB of device memory, of which nobody says how much there is" in str(unknown)


def test_nothing_to_do():
    assert "everything is stored" in str(estimate([], limits=ROOMY))


WORKS = {
    "training": lambda recipe: training(*recipe, snapshots=5),
    "series": lambda recipe: series(*recipe, 2),
    "metagradient": lambda recipe: metagradient(*recipe, 3),
    "ensemble": lambda recipe: ensemble(*recipe, 9),
    "tangents": lambda recipe: tangents(*recipe, 4, 2),
    "unlearning": lambda recipe: unlearning(method("sampled"), *recipe, 2),
    "curvature": lambda recipe: curvature(*recipe, 64),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_does_not_fit_is_refused_before_any_step(recipe, monkeypatch, name):
    monkeypatch.setattr(expected, "step_seconds", None)  # not to be called
    work = WORKS[name](recipe)
    needed = work.memory(work.spec, footprint(*recipe))
    needed = needed.device + needed.host
    small = Limits(device=None, host=needed - 1, shared=True)
    with pytest.raises(unroll.InputError, match=re.escape(work.hint)):
        estimate([training(*recipe), work], limits=small)


@pytest.mark.parametrize("name", WORKS)
def test_what_fits_is_not_refused(recipe, hundredths, name):
    work = WORKS[name](recipe)
    needed = work.memory(work.spec, footprint(*recipe))
    enough = Limits(device=None, host=needed.device + needed.host, shared=True)
    assert estimate([work], limits=enough).needed == needed


def test_an_unknown_limit_refuses_nothing(recipe, hundredths):
    unknown = Limits(device=None, host=None, shared=False)
    found = estimate([training(*recipe, snapshots=10**12)], limits=unknown)
    assert "nobody says how much" in str(found)


# Multiples against XLA's own plans.


@pytest.fixture(params=["mlp", "cnn"])
def net(request, images):
    train, _ = images
    options = {"mlp": {"hidden": (64, 64)}, "cnn": {"channels": (8, 8)}}[request.param]
    spec = unroll.TrainSpec(unroll.models.build(request.param, num_classes=3, **options))
    return spec, train, unroll.data.make_schedule(0, len(train), batch_size=16, epochs=2)


def test_series_of_order_two_holds_three_states(net):
    spec, found = net[0], footprint(*net)
    needed = series_bytes(spec, found, 2)
    # Before and after the step, and less than the ten products of a step held at once.
    least = found.examples + 2 * 3 * found.state
    assert least < needed.device < 10 * found.program.total
    assert needed.host == 6 * found.state


@pytest.mark.parametrize("numbers", [1, 6])
@pytest.mark.parametrize("keep", [4, 12])
def test_metagradient_against_the_plan(net, numbers, keep):
    found = footprint(*net)
    state, _, examples, weights, key, schedule = found.arguments

    def stacked(leaf):
        return jax.ShapeDtypeStruct((numbers, *leaf.shape), leaf.dtype)

    plan = program_bytes(
        backward._reverse_stretch,
        net[0],
        keep,
        not found.convolutions,
        state,
        jax.tree.map(stacked, moving_leaves(state)),
        stacked(weights),
        examples,
        weights,
        key,
        schedule,
        0,
        0,
    )
    assert 0.5 < metagradient_bytes(found, len(net[2]), numbers, keep).device / plan.total < 2


def test_ensemble_against_the_plan(net, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    found, models = footprint(*net), 6
    state, losses, examples, weights, key, schedule = found.arguments

    @functools.partial(jax.jit, donate_argnames=("state", "losses"))
    def advance(state, losses, examples, weights, keys, schedules, start, stop):
        def body(step, carry):
            state, losses = carry
            each = jax.vmap(functools.partial(train_step, net[0]), (0, None, 0, 0, None, 0))
            state, loss = each(state, examples, weights, keys, step, schedules[:, step])
            return state, losses.at[:, step].set(loss)

        return jax.lax.fori_loop(start, stop, body, (state, losses))

    def stacked(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((models, *x.shape), x.dtype), tree)

    plan = program_bytes(
        advance,
        *stacked((state, losses)),
        examples,
        *stacked((weights, key, schedule)),
        0,
        0,
    )
    # The plan is of one device; here each of the two would hold the examples.
    planned = plan.total + found.examples
    assert 0.5 < ensemble_bytes(found, models).device / planned < 2


def test_an_ensemble_in_groups_needs_less(net, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    found = footprint(*net)
    whole, grouped = (ensemble_bytes(found, 32, size).device for size in (32, 4))
    if found.convolutions:  # one after the other on the CPU, whatever the groups
        assert whole == grouped == found.program.total
    else:
        assert whole > 4 * grouped


# Plans of studies.


@pytest.fixture
def study(blobs, mlp_spec):
    train, test = blobs
    return Study(
        name="blobs",
        train=train,
        test=test,
        spec=mlp_spec,
        forget=np.array([2, 30, 31]),
        forget_description="ids",
        model_name="mlp",
        methods=("original", "replay", "taylor(order=1)", "finetune"),
        epochs=2,
        batch_size=16,
        train_seeds=(0, 1),
        method_seeds=(0, 1),
        independents=3,
        record_every=4,
    )


def counted(works):
    found: dict[str, int] = {}
    for work in works:
        found[work.what] = found.get(work.what, 0) + work.count
    return found


def entries(store, program):
    """Stored computations whose identity has a certain field."""
    found = [json.loads(path.read_text()) for path in store.root.glob("*/identity.json")]
    return sum(1 for identity in found if program(identity))


def test_plan_of_a_study_lists_what_it_trains(study, tmp_path):
    store = unroll.Store(tmp_path)
    # 3 oracles, 2 nulls, 2 originals, 2 twins; 3 methods, 2 seeds of each, 2 runs.
    assert counted(study_work(study)) == {"training": 9, "unlearned model": 12}
    assert counted(study_work(study, store)) == {"training": 9, "unlearned model": 12}
    records = run_study(study, store)
    next(records)  # all but the second seed's models are trained
    assert counted(study_work(study, store)) == {"training": 2, "unlearned model": 12}
    list(records)
    assert counted(study_work(study, store)) == {}
    assert entries(store, lambda identity: identity.get("program") == "single") == 9
    assert entries(store, lambda identity: "method" in identity) == 12
    another = dataclasses.replace(study, forget=np.array([5]))
    assert counted(study_work(another, store)) == {"training": 7, "unlearned model": 12}


def test_costs_of_methods(study, recipe):
    multiples = {
        text: unlearning(method(text), *recipe, epochs=2).multiple
        for text in (
            "replay",
            "taylor(order=3)",
            "finetune(epochs=4)",
            "single_gradient",
            "amnesiac",
        )
    }
    assert list(multiples.values()) == [1.0, 10.0, 2.0, 0.0, 2.0]


def test_plan_of_cohorts_lists_what_it_trains(blobs, mlp_spec, tmp_path):
    train, test = blobs
    study = CohortStudy(
        name="cohorts",
        train=train,
        test=test,
        spec=mlp_spec,
        cohorts=random_cohorts(len(train), count=3, fraction=0.05, seed=0),
        model_name="mlp",
        orders=(1, 2),
        union_sizes=(1, 2),
        epochs=1,
        batch_size=16,
        train_seeds=(0, 1),
    )
    store = unroll.Store(tmp_path)
    # Of each seed an original, an independent retrain and two twins.
    assert counted(cohort_work(study, store)) == {"training": 8, "tangent set": 4}
    list(run_cohort_study(study, store))
    assert counted(cohort_work(study, store)) == {"tangent set": 4}
    assert entries(store, lambda identity: identity.get("program") == "single") == 8


def test_memory_of_tangents_grows_with_the_cohorts(recipe):
    found = footprint(*recipe)
    sizes = [
        tangents(*recipe, cohorts, order).memory(recipe[0], found)
        for cohorts, order in ((2, 1), (8, 1), (8, 2))
    ]
    assert sizes[0].device < sizes[1].device < sizes[2].device
    assert [size.host // found.state for size in sizes] == [6, 12, 52]


def test_a_work_on_no_piece_is_left_out(recipe):
    work = training(*recipe, count=0)
    assert isinstance(work, Work)
    assert estimate([work], limits=ROOMY).seconds == 0.0
