"""RUM as a fold: what a step starts from, what it retains, what one part and doing nothing are."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import unroll
from unroll import tree
from unroll.evaluation.study import apply_method
from unroll.memorization.refinement import partition, random_scores
from unroll.memorization.rum import plan_steps, rum
from unroll.methods import method
from unroll.problem import Method, Problem, Unlearned
from unroll.unrolling.subspaces import parse_projection, record_statistics

FORGET = np.array([3, 9, 17, 40, 41, 55, 70, 71, 100])
SCORES = random_scores(120, seed=0)
FINETUNE = "finetune(learning_rate=0.02, epochs=1, batch_size=40)"
LABELS = "random_label(learning_rate=0.02, epochs=1, batch_size=40)"


@pytest.fixture(scope="module")
def request_(recorded_run):
    return Problem(recorded_run, FORGET)


@dataclasses.dataclass
class Probe:
    """A method that notes what it is given and moves every parameter by `shift`."""

    dataset: unroll.data.Dataset
    shift: float = 0.25
    needs: tuple = ("original", "forget", "retain")

    def __post_init__(self):
        self.seen = []

    @property
    def method(self):
        return Method("probe", {"shift": self.shift}, frozenset(self.needs), self)

    def ids(self, data):
        """Ids in the whole training set of examples, which are all different."""
        same = (self.dataset.inputs[None] == data.inputs[:, None]).all(axis=-1)
        assert (same.sum(axis=1) == 1).all()
        return same.argmax(axis=1)

    def __call__(self, key, access):
        note = {name: self.ids(getattr(access, f"{name}_data")) for name in ("forget", "retain")}
        weights = access.twin_weights
        assert weights[access.forget_ids].sum() == 0
        assert weights.sum() == len(note["retain"]) == len(weights) - len(note["forget"])
        state = access.original
        key_data = jax.random.key_data(key).tolist()
        self.seen.append({**note, "start": tree.content_hash(state.params), "key": key_data})
        moved = jax.tree.map(lambda leaf: leaf + np.float32(self.shift), state.params)
        return Unlearned(moved, state.model_state, 10.0, seconds=0.5)


@pytest.mark.parametrize("text", ["original", FINETUNE, "salun(fraction=0.3)", "taylor(order=1)"])
@pytest.mark.parametrize("policy", ["nested", "final"])
def test_one_part_is_the_method_itself_bit_for_bit(request_, text, policy):
    whole = method(text)(jax.random.key(4), request_)
    one = rum(SCORES, method(text), 1, retain_policy=policy)(jax.random.key(4), request_)
    assert tree.same_bits(whole.params, one.params)
    assert one.example_gradients == whole.example_gradients


def test_one_part_and_no_example_is_the_method_itself(request_):
    empty = dataclasses.replace(request_, forget=np.array([], int))
    whole = method(FINETUNE)(jax.random.key(4), empty)
    assert tree.same_bits(
        whole.params, rum(SCORES, method(FINETUNE), 1)(jax.random.key(4), empty).params
    )


def test_nested_retain_sets_shrink_and_never_meet_what_is_gone(request_):
    probe = Probe(request_.run.dataset)
    result = rum(SCORES, probe.method)(jax.random.key(0), request_)
    parts = partition(SCORES, FORGET)
    gone = np.array([], int)
    for part, seen in zip(parts, probe.seen, strict=True):
        gone = np.union1d(gone, part)
        assert np.array_equal(np.sort(seen["forget"]), part)
        assert np.array_equal(np.sort(seen["retain"]), np.setdiff1d(np.arange(120), gone))
    assert np.array_equal(gone, FORGET)
    assert [step["retain"] for step in result.info["steps"]] == [117, 114, 111]
    assert len({tuple(seen["key"]) for seen in probe.seen}) == 3


def test_final_retain_sets_never_meet_the_forget_set(request_):
    probe = Probe(request_.run.dataset)
    rum(SCORES, probe.method, retain_policy="final")(jax.random.key(0), request_)
    for part, seen in zip(partition(SCORES, FORGET), probe.seen, strict=True):
        assert np.array_equal(np.sort(seen["forget"]), part)
        assert np.array_equal(np.sort(seen["retain"]), np.setdiff1d(np.arange(120), FORGET))


def test_each_step_starts_from_the_result_of_the_one_before(request_):
    probe = Probe(request_.run.dataset)
    result = rum(SCORES, probe.method)(jax.random.key(0), request_)
    hashes = [tree.content_hash(request_.run.state.params)]
    params = request_.run.state.params
    for _ in range(3):
        params = jax.tree.map(lambda leaf: leaf + np.float32(0.25), params)
        hashes.append(tree.content_hash(params))
    assert [seen["start"] for seen in probe.seen] == hashes[:3]
    steps = result.info["steps"]
    assert [step["input"] for step in steps] == hashes[:3]
    assert [step["output"] for step in steps] == hashes[1:]
    assert tree.same_bits(result.params, params)
    assert (result.example_gradients, result.seconds) == (30.0, 1.5)
    json.dumps(result.info)


def test_doing_nothing_leaves_the_bits_and_costs_nothing(request_):
    nothing = rum(SCORES, method("original"))(jax.random.key(0), request_)
    assert tree.same_bits(nothing.params, request_.run.state.params)
    assert nothing.example_gradients == nothing.seconds == 0
    last = rum(SCORES, [method("original"), method("original"), method(LABELS)])
    result = last(jax.random.key(0), request_)
    first, second, third = result.info["steps"]
    assert first["input"] == first["output"] == second["output"] == third["input"]
    assert third["output"] != third["input"]
    assert result.example_gradients == third["example_gradients"] == 114


def test_high_to_low_reverses_parts_and_methods(request_):
    low, high = Probe(request_.run.dataset, 0.5), Probe(request_.run.dataset, 1.0)
    both = rum(SCORES, [low.method, high.method], order="high_to_low")
    result = both(jax.random.key(0), request_)
    parts = partition(SCORES, FORGET, 2)
    assert np.array_equal(np.sort(high.seen[0]["forget"]), parts[1])
    assert np.array_equal(np.sort(low.seen[0]["forget"]), parts[0])
    assert [step["method"] for step in result.info["steps"]] == [
        "probe(shift=1.0)",
        "probe(shift=0.5)",
    ]


def test_normalisation_statistics_are_handed_on(normalized):
    result = rum(random_scores(64, 0), method("finetune"), 2)(jax.random.key(0), normalized)
    assert not tree.same_bits(result.model_state, normalized.run.state.model_state)


@pytest.fixture(scope="module")
def normalized(images):
    train, _ = images
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,), normalization="batch")
    )
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=1)
    return Problem(unroll.train(spec, train, schedule), np.arange(5, 64, 6))


def test_moments_are_those_of_the_model_that_is_unlearned(request_):
    """Each later step pays a pass over what the model still knows; the first is prepared."""
    text = "projected_gradient(epochs=1, projection='energy(threshold=0.9)')"
    result = rum(SCORES, method(text))(jax.random.key(0), request_)
    alone = method(text)(jax.random.key(0), Problem(request_.run, partition(SCORES, FORGET)[0]))
    first, *rest = result.info["steps"]
    assert first["example_gradients"] == alone.example_gradients
    own = sum(step["example_gradients"] for step in (first, *rest))
    all_moments = record_statistics(request_.run, parse_projection("energy").options)
    passes = (117 + 114) / 120
    assert result.example_gradients - own == pytest.approx(passes * all_moments.example_gradients)
    assert "drift" not in result.info.get("warning", "")


def test_replays_are_refused_where_there_is_nothing_to_replay(request_):
    with pytest.raises(unroll.InputError, match="replay needs the recorded run"):
        rum(SCORES, method("replay"))
    with pytest.raises(unroll.InputError, match="needs the recorded run"):
        rum(SCORES, [method("taylor(order=1)"), method(FINETUNE)], retain_policy="final")
    with pytest.raises(unroll.InputError, match="needs the recorded run"):
        rum(SCORES, [method("replay"), method(FINETUNE)], order="high_to_low")
    first = rum(SCORES, [method("replay"), method("original"), method("original")])
    exact = method("replay")(jax.random.key(0), Problem(request_.run, partition(SCORES, FORGET)[0]))
    assert tree.same_bits(first(jax.random.key(0), request_).params, exact.params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rum(SCORES, method(FINETUNE), order="up"), "unknown order 'up'"),
        (lambda: rum(SCORES, method(FINETUNE), retain_policy="all"), "unknown retain_policy"),
        (lambda: rum(SCORES, []), "needs a method"),
        (lambda: rum(SCORES, Method("m", {}, frozenset({"statistics"}), None)), "no projection"),
        (lambda: plan_steps([[1, 2], [2]], [1, 2], 5), "parts overlap"),
    ],
)
def test_mistakes_show_when_it_is_made(make, message):
    with pytest.raises(unroll.InputError, match=message):
        make()


def test_mistakes_show_before_any_step(request_):
    probe = Probe(request_.run.dataset)
    with pytest.raises(unroll.InputError, match="119 scores and 120 training examples"):
        rum(SCORES[1:], probe.method)(jax.random.key(0), request_)
    with pytest.raises(unroll.InputError, match="9 examples cannot be cut into 10 parts"):
        rum(SCORES, probe.method, 10)(jax.random.key(0), request_)
    asks = Method("asks", {}, frozenset({"held_out"}), lambda key, access: None)
    with pytest.raises(unroll.InputError, match="held_out"):
        rum(SCORES, [probe.method, asks])(jax.random.key(0), request_)
    assert not probe.seen


def test_hyperparameters_tell_everything_apart():
    made = [
        rum(SCORES, method(FINETUNE)),
        rum(SCORES + 1, method(FINETUNE)),
        rum(SCORES, method(LABELS)),
        rum(SCORES, [method(FINETUNE), method(FINETUNE), method(LABELS)]),
        rum(SCORES, method(FINETUNE), 2),
        rum(SCORES, method(FINETUNE), tie_seed=1),
        rum(SCORES, method(FINETUNE), retain_policy="final"),
        rum(SCORES, method(FINETUNE), order="high_to_low"),
        rum(SCORES, method(FINETUNE), name="shuffle"),
        rum(SCORES, method(FINETUNE), scores_name="exact"),
    ]
    assert len(set(map(str, made))) == len(made)
    for each in made:
        assert json.loads(json.dumps(each.hyperparameters)) == each.hyperparameters
    assert str(made[0]).startswith("rum(count=3, methods='finetune(")
    assert made[-1].hyperparameters["scores"].startswith("exact:")


def test_the_address_of_a_result_follows_scores_and_methods(request_, tmp_path):
    store = unroll.Store(tmp_path)
    methods = [
        rum(SCORES, method("original"), 2),
        rum(SCORES + 1, method("original"), 2),
        rum(SCORES, [method("original"), method(FINETUNE)]),
    ]
    for each in methods:
        apply_method(each, 0, request_, store, None)
    described = list(tmp_path.glob("*/identity.json"))
    assert len(described) == 3
    codes = {json.dumps(json.loads(path.read_text())["code"]) for path in described}
    assert len(codes) == 2  # of `original` twice, and of `original` and `finetune`
    again = apply_method(methods[2], 0, request_, store, None)
    assert again.info["steps"][0]["forget"] == 4
