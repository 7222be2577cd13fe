"""Online tangents: agreement with the series of one cohort, cross terms, bits, kills, refusals."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll.data.cohorts import cohort_numbers, group_cohorts, random_cohorts, register_cohorts
from unroll.training import loop
from unroll.training.step import Examples, initial_state
from unroll.unrolling import tangents as module
from unroll.unrolling.tangents import _blank, advance_tangents, train_with_tangents
from unroll.unrolling.taylor import advance_taylor, taylor_coefficients, without, zeros_like_state

DIM, CLASSES, NUM = 5, 3, 24
COHORTS = {"a": [2, 9], "b": [4], "c": [20, 7, 11], "d": [0]}


class Network(nn.Module):
    """A tanh layer with the precision of its input."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(6, param_dtype=x.dtype)(x))
        return nn.Dense(CLASSES, param_dtype=x.dtype)(x)


OPTIMIZERS = {
    "momentum": unroll.optax_call("sgd", 0.1, momentum=0.9),
    # Smooth on the scale of the differences that are taken below.
    "adam": unroll.optax_call("adam", 0.02, eps_root=1e-4),
}


class Case:
    """A small run in float64: the loops take any precision, the trainer float32 only."""

    def __init__(self, optimizer="momentum", cohorts=COHORTS, epochs=3):
        rng = np.random.default_rng(1)
        self.examples = Examples(
            jnp.asarray(rng.normal(size=(NUM, DIM))),
            jnp.asarray(rng.integers(0, CLASSES, NUM), jnp.int32),
        )
        self.spec = unroll.TrainSpec(Network(), optimizer=OPTIMIZERS[optimizer])
        self.key, self.weights = jax.random.key(0), jnp.ones(NUM)
        state = initial_state(self.spec, self.key, self.examples.inputs)
        self.state = jax.tree.map(
            lambda a: np.asarray(a, np.float64) if a.dtype == jnp.float32 else np.array(a), state
        )
        self.schedule = jnp.asarray(unroll.data.make_schedule(0, NUM, 6, epochs))
        self.numbers = cohort_numbers(register_cohorts(cohorts, NUM), NUM)
        self.count = len(cohorts)

    def bundle(self, order, group_size=1):
        return advance_tangents(
            self.spec,
            _blank(self.state, self.count, order),
            self.examples,
            self.weights,
            jnp.asarray(self.numbers),
            self.key,
            self.schedule,
            0,
            len(self.schedule),
            group_size,
        )

    def series(self, cohort, order):
        direction = -1.0 * (self.numbers == cohort)
        start = jax.tree.map(np.array, self.state)
        return advance_taylor(
            self.spec,
            [start] + [zeros_like_state(start) for _ in range(order)],
            self.examples,
            self.weights,
            jnp.asarray(direction),
            self.key,
            self.schedule,
            0,
            len(self.schedule),
        )

    def trained(self, changes):
        """Floating-point leaves of the final state at cohort weights `1 + changes`."""
        change = jnp.append(changes, 0.0)[self.numbers]  # number -1 takes the appended 0
        state, _ = loop.scan_steps(
            self.spec, self.state, self.examples, self.weights + change, self.key, self.schedule
        )
        return floating(state)


def floating(state):
    return [leaf for leaf in jax.tree.leaves(state) if unroll.tree.is_floating(leaf)]


def pair(bundle, a, b):
    count = len(bundle.first[0])
    offset = (b - a) % count
    place = (a, offset) if offset <= count // 2 else (b, count - offset)
    return [leaf[place] for leaf in bundle.second]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_agrees_with_the_series_of_one_cohort(optimizer):
    """t_a = -c_1 and s_aa = 2 c_2, up to the rounding of float64."""
    with jax.enable_x64(True):
        case = Case(optimizer)
        bundle = case.bundle(order=2)
        for cohort in range(case.count):
            series = case.series(cohort, 2)
            first = [-leaf[cohort] for leaf in bundle.first]
            chex.assert_trees_all_close(first, floating(series[1]), rtol=1e-9, atol=1e-12)
            half = [leaf / 2 for leaf in pair(bundle, cohort, cohort)]
            chex.assert_trees_all_close(half, floating(series[2]), rtol=1e-8, atol=1e-11)
        chex.assert_trees_all_close(floating(bundle.state), floating(series[0]), rtol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cross_terms_agree_with_mixed_differences(optimizer):
    """(F(+,+) - F(+,-) - F(-,+) + F(-,-)) / 4 h^2; h balances its h^2 and rounding / h^2."""
    h = 1e-3
    with jax.enable_x64(True):
        case = Case(optimizer)
        bundle = case.bundle(order=2)
        unit = np.eye(case.count)
        trained = jax.jit(case.trained)
        for a, b in [(0, 2), (3, 1), (1, 0)]:
            terms = [
                (s * r, trained(h * (s * unit[a] + r * unit[b]))) for s in (1, -1) for r in (1, -1)
            ]
            mixed = [
                sum(sign * leaves[i] for sign, leaves in terms) / (4 * h * h)
                for i in range(len(bundle.second))
            ]
            scale = max(float(jnp.abs(leaf).max()) for leaf in mixed)
            assert scale > 1e-4  # something to compare
            chex.assert_trees_all_close(pair(bundle, a, b), mixed, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(("count", "group_size"), [(1, 1), (3, 2)])
def test_groups_of_any_size_give_the_same_numbers(count, group_size):
    """Also with one cohort, an odd and an even number, and a remainder after the last group."""
    with jax.enable_x64(True):
        whole = Case().bundle(order=2)
        part = Case(cohorts=dict(list(COHORTS.items())[:count])).bundle(2, group_size)
        first = [leaf[:count] for leaf in whole.first]
        chex.assert_trees_all_close(part.first, first, rtol=1e-9, atol=1e-12)
        for a in range(count):
            for b in range(count):
                chex.assert_trees_all_close(
                    pair(part, a, b), pair(whole, a, b), rtol=1e-8, atol=1e-11
                )


def test_a_cohort_and_its_two_halves():
    """Additivity: t of a union is the sum of the t, s of a union the sum over all pairs."""
    with jax.enable_x64(True):
        halves = Case(cohorts={"x": [2, 9], "y": [4, 13], "z": [20], "u": [1]}).bundle(2)
        whole = Case(cohorts={"xy": [2, 4, 9, 13]}).bundle(2)
        first = [leaf[0] + leaf[1] for leaf in halves.first]
        chex.assert_trees_all_close(first, [leaf[0] for leaf in whole.first], rtol=1e-9, atol=1e-12)
        xx, xy, yy = (pair(halves, *p) for p in [(0, 0), (0, 1), (1, 1)])
        second = [x + 2 * c + y for x, c, y in zip(xx, xy, yy, strict=True)]
        chex.assert_trees_all_close(second, pair(whole, 0, 0), rtol=1e-8, atol=1e-11)


# The trainer, in float32.

SPEC = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))


@pytest.fixture(scope="module")
def setting(blobs):
    train, _ = blobs
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=3)
    return train, schedule, random_cohorts(len(train), count=5, fraction=0.02, seed=1)


@pytest.fixture(scope="module")
def trained(setting):
    return train_with_tangents(SPEC, *setting, order=2, record=unroll.Record(every=5))


def test_the_run_has_the_bits_of_plain_training(setting, trained):
    train, schedule, _ = setting
    plain = unroll.train(SPEC, train, schedule, record=unroll.Record(every=5))
    assert unroll.tree.same_bits(trained.run.state, plain.state)
    assert trained.run.address == plain.address
    assert np.array_equal(trained.run.losses, plain.losses)
    for step in plain.snapshots:
        assert unroll.tree.same_bits(trained.run.snapshots[step], plain.snapshots[step])
    assert trained.run.seconds > 0
    # The tangents' copy of the parameters may differ by rounding, 24 steps of it.
    assert trained.info["copy_distance"] < 1e-5 * unroll.tree.norm(plain.state.params)


def test_agrees_with_taylor_in_float32(trained):
    """Order 1 exactly as much as rounding allows; order 2 is a difference of larger terms."""
    run, name = trained.run, "cohort 2"
    series = taylor_coefficients(run, without(run, trained.cohorts[name]), 2)
    first = jax.tree.map(np.negative, trained.tangent(name).params)
    half = jax.tree.map(lambda leaf: leaf / 2, trained.cross(name, name).params)
    assert unroll.tree.distance(first, series[1].params) < 1e-5 * unroll.tree.norm(first)
    assert unroll.tree.distance(half, series[2].params) < 1e-4 * unroll.tree.norm(half)


def test_deletion_of_unions_comes_close_to_retraining(trained):
    """Order 2 is better than order 1, order 1 better than nothing, for one cohort and for four."""
    run = trained.run
    for names in (["cohort 1"], ["cohort 0", "cohort 1", "cohort 3", "cohort 4"]):
        ids = np.concatenate([trained.cohorts[name] for name in names])
        problem = unroll.Problem(run, ids)
        twin = unroll.unlearn("retrain", problem).params
        errors = [
            unroll.relative_verification_error(
                trained.delete(names, order=order).params, twin, run.state.params
            )
            for order in (1, 2)
        ]
        assert errors[0] < 0.3 and errors[1] < errors[0] / 2, errors
    # Without its cross terms the second order would not reach the twin of the union.
    lone = [trained.cross(name, name).params for name in names]
    diagonal = jax.tree.map(
        lambda leaf, *own: leaf + sum(own) / 2, trained.delete(names, order=1).params, *lone
    )
    assert unroll.verification_error(diagonal, twin) > 2 * unroll.verification_error(
        trained.delete(names).params, twin
    )


def test_deletions_depend_on_the_set_only(trained):
    state = trained.run.state
    assert unroll.tree.same_bits(trained.delete([]), state)
    names = ["cohort 3", "cohort 0", "cohort 4"]
    one, other = trained.delete(names), trained.delete([*reversed(names), "cohort 0"])
    assert unroll.tree.same_bits(one, other)
    single = trained.delete("cohort 1", order=1)
    expected = jax.tree.map(np.subtract, state.params, trained.tangent("cohort 1").params)
    chex.assert_trees_all_close(single.params, expected, rtol=1e-6)
    # One after the other is one vector addition after the other at order 1.
    both = trained.delete(["cohort 1", "cohort 2"], order=1)
    expected = jax.tree.map(np.subtract, single.params, trained.tangent("cohort 2").params)
    chex.assert_trees_all_close(both.params, expected, rtol=1e-5, atol=1e-7)


def test_cross_terms_are_symmetric(trained):
    for a, b in [(0, 1), (0, 3), (4, 1)]:
        one, other = (f"cohort {a}", f"cohort {b}"), (f"cohort {b}", f"cohort {a}")
        assert unroll.tree.same_bits(trained.cross(*one), trained.cross(*other))


class Killed(Exception):
    pass


def killer(at):
    def progress(done, total):
        assert done <= total
        if done >= at:
            raise Killed

    return progress


@pytest.mark.parametrize("order", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, setting, order, monkeypatch):
    store = unroll.Store(tmp_path, progress_seconds=0.0)
    whole = train_with_tangents(SPEC, *setting, order=order)
    for at in (4, 6):  # the second goes on from the first
        with pytest.raises(Killed):
            train_with_tangents(SPEC, *setting, order=order, store=store, progress=killer(at))
    starts = []
    original = module.advance_tangents

    def spy(*arguments):
        starts.append(arguments[7])
        return original(*arguments)

    monkeypatch.setattr(module, "advance_tangents", spy)
    resumed = train_with_tangents(SPEC, *setting, order=order, store=store)
    assert min(start for start in starts if start) >= 4  # all but the compiling call, at step 0
    assert unroll.tree.same_bits(resumed.bundle, whole.bundle)
    assert unroll.tree.same_bits(resumed.run.state, whole.run.state)

    starts.clear()
    reports = []
    again = train_with_tangents(
        SPEC, *setting, order=order, store=store, progress=lambda *done: reports.append(done)
    )
    assert not starts and reports  # read back, nothing trained
    assert unroll.tree.same_bits(again.delete(["cohort 1"]), whole.delete(["cohort 1"]))
    assert again.seconds == resumed.seconds


def test_a_finished_run_of_the_store_gets_its_tangents(tmp_path, setting):
    """A run that was trained without tangents is not trained again for them."""
    train, schedule, cohorts = setting
    store = unroll.Store(tmp_path)
    plain = unroll.train(SPEC, train, schedule, store=store)
    late = train_with_tangents(SPEC, *setting, store=store)
    assert late.run.seconds == plain.seconds
    assert unroll.tree.same_bits(late.bundle, train_with_tangents(SPEC, *setting).bundle)


def test_starting_from_a_model(setting):
    """A pretrained state does not depend on the cohorts: its tangents start at 0."""
    train, schedule, cohorts = setting
    first = unroll.train(SPEC, train, schedule[:6]).state
    result = train_with_tangents(SPEC, train, schedule[6:12], cohorts, initial=first)
    plain = unroll.train(SPEC, train, schedule[6:12], initial=first)
    assert result.run.address == plain.address
    weights = np.ones(len(train), np.float32)
    weights[cohorts["cohort 0"]] = 0
    twin = unroll.train(SPEC, train, schedule[6:12], initial=first, weights=weights)
    relative = unroll.relative_verification_error(
        result.delete("cohort 0").params, twin.state.params, plain.state.params
    )
    assert relative < 0.2


def test_convolutions(images):
    """Their primitives have a batching rule of their own, which groups of tangents go through."""
    train, _ = images
    spec = unroll.TrainSpec(unroll.models.build("cnn", num_classes=3, channels=(3,)))
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=1)
    cohorts = {"a": [1, 5], "b": [8]}
    result = train_with_tangents(spec, train, schedule, cohorts, order=2, group_size=2)
    series = taylor_coefficients(result.run, without(result.run, np.array([1, 5])), 2)
    first = jax.tree.map(np.negative, result.tangent("a").params)
    half = jax.tree.map(lambda leaf: leaf / 2, result.cross("a", "a").params)
    assert unroll.tree.distance(first, series[1].params) < 1e-5 * unroll.tree.norm(first)
    assert unroll.tree.distance(half, series[2].params) < 1e-4 * unroll.tree.norm(half)


def test_costs_are_counted(trained):
    run, count = trained.run, 5
    passes = 1 + 2 * count + count * (3 + 6 * 3)
    assert trained.example_gradients == run.example_gradients * passes
    states = count + count * 3
    assert trained.bytes_per_cohort == states * 4 * sum(map(np.size, floating(run.state))) / count
    assert trained.seconds > 0


MISTAKES = {
    "no cohort": ({}, "at least one cohort"),
    "empty": ({"a": []}, "'a' has no example"),
    "out of range": ({"a": [3], "b": [120]}, "cohort 'b': id 120 is out of range"),
    "negative": ({"a": [-1]}, "id -1 is out of range"),
    "twice": ({"a": [3, 4, 3]}, "id 3 occurs twice"),
    "overlap": ({"a": [3, 4], "b": [5], "c": [9, 4]}, "cohorts 'a' and 'c' share example 4"),
    "mask": ({"a": np.ones(120, bool)}, "boolean mask"),
    "name": ({7: [3]}, "cohort 7: give each cohort a name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_cohorts_are_refused(setting, mistake):
    cohorts, message = MISTAKES[mistake]
    train, schedule, _ = setting
    with pytest.raises(unroll.InputError, match=message):
        train_with_tangents(SPEC, train, schedule, cohorts)


@pytest.mark.parametrize("options", [dict(order=0), dict(order=3), dict(group_size=0)])
def test_bad_settings_are_refused(setting, options):
    with pytest.raises(unroll.InputError, match=next(iter(options)).replace("_", ".")):
        train_with_tangents(SPEC, *setting, **options)


def test_an_initial_state_of_another_model_is_refused(setting):
    train, schedule, cohorts = setting
    other = unroll.TrainSpec(unroll.models.build("linear", num_classes=3))
    state = initial_state(other, jax.random.key(0), train.inputs)
    with pytest.raises(unroll.InputError, match="does not fit the specification"):
        train_with_tangents(SPEC, train, schedule, cohorts, initial=state)


def test_bad_deletions_are_refused(setting, trained):
    with pytest.raises(unroll.InputError, match="'user 7' was not registered.*cohort 0, cohort 1"):
        trained.delete(["cohort 0", "user 7"])
    with pytest.raises(unroll.InputError, match="not registered"):
        trained.tangent("user 7")


def test_tangents_of_relu_and_of_shards(setting):
    """A kink is warned about; shards may hold everything, but not be deleted all."""
    train, schedule, _ = setting
    spec = unroll.TrainSpec(
        unroll.models.build("mlp", num_classes=3, hidden=(8,), activation="relu")
    )
    shards = {"low": range(60), "high": range(60, 120)}
    first = train_with_tangents(spec, train, schedule[:2], shards)
    assert "relu" in first.info["warning"]
    with pytest.raises(unroll.InputError, match="retain at least one"):
        first.delete(["low", "high"])
    with pytest.raises(unroll.InputError, match="train with order=2"):
        first.delete(["low"], order=2)
    with pytest.raises(unroll.InputError, match="train with order=2"):
        first.cross("low", "high")


def test_tangents_that_are_not_finite_are_refused(blobs):
    """Adam's square root has no derivative at 0, where a dead input keeps the second moment."""
    train, _ = blobs
    dead = np.array(train.inputs)
    dead[:, 0] = 0.0
    data = unroll.data.Dataset("dead", dead, train.labels, 3)
    schedule = unroll.data.make_schedule(0, len(data), batch_size=24, epochs=1)
    spec = unroll.TrainSpec(SPEC.model, optimizer=unroll.optax_call("adam", 0.01))
    with pytest.raises(unroll.DivergenceError, match="cohort 'a'.*eps_root"):
        train_with_tangents(spec, data, schedule, {"a": [1, 2]})


def test_cohorts_of_groups_and_random_ones(blobs):
    train, _ = blobs
    groups = np.arange(len(train), dtype=np.int32) % 3
    owned = unroll.data.Dataset("owned", train.inputs, train.labels, 3, groups=groups)
    found = group_cohorts(owned)
    assert list(found) == ["group 0", "group 1", "group 2"]
    assert np.array_equal(found["group 1"], np.arange(1, 120, 3))
    with pytest.raises(unroll.InputError, match="no groups"):
        group_cohorts(train)
    drawn = random_cohorts(100, count=4, fraction=0.1, seed=3)
    ids = np.concatenate(list(drawn.values()))
    assert len(ids) == 40 and len(set(ids.tolist())) == 40
    for count, fraction in ((10, 0.1), (3, 0.001)):
        with pytest.raises(unroll.InputError, match="choose cohorts"):
            random_cohorts(100, count=count, fraction=fraction)
