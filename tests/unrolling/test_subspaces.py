"""Captured inputs, their second moments, and what of them is protected: known answers."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import unroll
from unroll.models.convolution import Conv
from unroll.unrolling.subspaces import (
    LayerOptions,
    RankRule,
    input_statistics,
    parse_projection,
    record_statistics,
    retained_bases,
)
from unroll.unrolling.subspaces.inputs import extract_patches, layer_rows
from unroll.unrolling.subspaces.spectrum import (
    all_bases,
    protected,
    rank,
    sketched_spectrum,
    spectrum,
)
from unroll.unrolling.subspaces.statistics import cost_in_gradients, sketch_matrix


def float64_model(model, inputs):
    params = model.init(jax.random.key(0), inputs)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)


GEOMETRIES = {
    "same": dict(strides=(1, 1), padding="SAME"),
    "stride 2": dict(strides=(2, 2), padding="SAME"),
    "valid": dict(strides=(2, 1), padding="VALID"),
    "pairs": dict(strides=(2, 2), padding=((1, 0), (2, 1))),
    "pointwise": dict(kernel_size=(1, 1), strides=(2, 2), padding="SAME"),
}


@pytest.mark.parametrize("layer", [Conv, nn.Conv])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rows_times_kernel_are_the_output(layer, geometry):
    with jax.enable_x64(True):
        model = layer(4, **{"kernel_size": (3, 2), **GEOMETRIES[geometry]})
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 3)))
        params = float64_model(model, x)
        rows = layer_rows(unroll.TrainSpec(model), params, {}, x)[""]
        output = model.apply({"params": params}, x)
        product = rows @ params["kernel"].reshape(-1, 4)
        np.testing.assert_allclose(product, output.reshape(2, -1, 4), atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_dilation=2),
        dict(kernel_dilation=(1, 2), strides=2),
        dict(padding=1),
        dict(padding=(1, (0, 2))),
    ],
    ids=str,
)
def test_dilation_and_other_forms_of_padding(options):
    with jax.enable_x64(True):
        model = nn.Conv(4, (3, 3), **options)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, 3)))
        params = float64_model(model, x)
        rows = layer_rows(unroll.TrainSpec(model), params, {}, x, bias=True)[""]
        stacked = jnp.concatenate([params["kernel"].reshape(-1, 4), params["bias"][None]])
        output = model.apply({"params": params}, x).reshape(2, -1, 4)
        np.testing.assert_allclose(rows @ stacked, output, atol=1e-13)


def test_patches_are_those_of_lax_in_the_order_of_the_kernel():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 3)), jnp.float32)
    ours = extract_patches(x, (3, 2), (2, 1), "SAME", (1, 1))
    theirs = lax.conv_general_dilated_patches(
        x, (3, 2), (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    theirs = theirs.reshape(*theirs.shape[:3], 3, 6)  # (channel, row and column)
    np.testing.assert_allclose(ours, jnp.moveaxis(theirs, 3, 4).reshape(ours.shape), rtol=1e-6)


class Twice(nn.Module):
    """One dense layer used twice, and one in a submodule."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4)
        x = shared(jnp.tanh(shared(x)))
        return unroll.models.layers.Head(3, name="head")(x)


def test_a_shared_layer_has_the_rows_of_all_its_calls():
    x = jnp.ones((2, 4))
    model = Twice()
    params = model.init(jax.random.key(0), x)["params"]
    rows = layer_rows(unroll.TrainSpec(model), params, {}, x)
    assert {path: found.shape for path, found in rows.items()} == {
        "Dense_0": (2, 2, 4),
        "head/dense": (2, 1, 4),
    }


def test_grouped_convolutions_are_left_out():
    model = nn.Sequential((nn.Conv(4, (3, 3), feature_group_count=2), nn.Conv(3, (3, 3))))
    x = jnp.ones((1, 5, 5, 2))
    params = model.init(jax.random.key(0), x)["params"]
    assert list(layer_rows(unroll.TrainSpec(model), params, {}, x)) == ["layers_1"]


@pytest.fixture(scope="module")
def trained(images):
    train, _ = images
    spec = unroll.TrainSpec(unroll.models.build("vgg_small", num_classes=3, width=0.125))
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=1)
    return unroll.train(spec, train, schedule)


PLAIN = LayerOptions()


def moments(run, data, options=PLAIN, **more):
    params, model_state = run.state.params, run.state.model_state
    return input_statistics(run.spec, params, model_state, data, options, **more)


def assert_same(first, second, rtol):
    assert list(first.layers) == list(second.layers)
    for path, layer in first.layers.items():
        other = second.layers[path]
        scale = np.abs(layer.products).max()
        np.testing.assert_allclose(layer.products, other.products, atol=rtol * scale)
        np.testing.assert_allclose(layer.trace, other.trace, rtol=rtol)


def test_moments_are_sums_over_rows(trained):
    found = moments(trained, trained.dataset, batch_size=10)
    rows = layer_rows(trained.spec, trained.state.params, {}, trained.dataset.inputs)
    for path, layer in found.layers.items():
        x = np.asarray(rows[path], np.float64).reshape(-1, rows[path].shape[-1])
        # float32 products of 64 examples.
        np.testing.assert_allclose(layer.products, x.T @ x, rtol=1e-5, atol=1e-5)
        assert layer.trace == pytest.approx((x**2).sum(), rel=1e-5)
    assert found.examples == 64


@pytest.mark.parametrize("options", [LayerOptions(), LayerOptions(max_inputs=30, sketch_rank=20)])
def test_moments_of_parts_add_up(trained, options):
    data, forget = trained.dataset, np.arange(0, 64, 7)
    retain = unroll.data.retain_ids(forget, 64)
    whole = moments(trained, data, options)
    left = whole.minus(moments(trained, data.take(forget), options))
    # Each product is rounded to float32.
    assert_same(left, moments(trained, data.take(retain), options), 1e-6)
    assert left.examples == len(retain) and not left.drifted
    weights = np.isin(np.arange(64), retain)
    assert_same(left, moments(trained, data, options, weights=weights), 1e-6)


def test_in_float64_parts_add_up_to_the_last_digits(trained):
    with jax.enable_x64(True):
        state = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64), trained.state._replace(opt_state=())
        )
        run = dataclasses.replace(trained, state=state)
        data = run.dataset
        parts = [data.take(range(20)), data.take(range(20, 64))]
        left = moments(run, data).minus(moments(run, parts[0]))
        assert_same(left, moments(run, parts[1]), 1e-13)
        spectra = left.spectra().values()
        assert max(found.clipped for found in spectra) < 1e-12


def test_other_images_or_another_model_show_as_clipped_mass(trained):
    """What the subtraction rests on, violated: brighter images, and a model that has moved."""
    data, forget = trained.dataset, np.arange(24)
    taken = data.take(forget)
    state = trained.state
    rule = RankRule("energy", 0.9)

    def retained(params, examples):
        return retained_bases(
            moments(trained, data), trained.spec, params, state.model_state, examples, rule
        )

    exact = retained(state.params, taken)
    assert max(layer["clipped"] for layer in exact.layers.values()) < 1e-5
    assert exact.warning is None and exact.statistics.examples == 40
    brighter = dataclasses.replace(taken, inputs=(3 * taken.inputs).astype(taken.inputs.dtype))
    augmented = retained(state.params, brighter)
    assert augmented.layers["Conv_0"]["clipped"] > 1e-3
    assert "do not contain the forget set" in augmented.warning
    moved = jax.tree.map(lambda leaf: 1.5 * leaf, state.params)
    drifted = retained(moved, taken)
    assert drifted.statistics.drifted and "two models" in drifted.warning
    with pytest.raises(unroll.InputError, match="different models"):
        drifted.statistics.minus(moments(trained, taken))


def test_the_bits_do_not_depend_on_the_number_of_devices(trained):
    one, four = (
        moments(trained, trained.dataset, batch_size=10, devices=jax.devices()[:count])
        for count in (1, 4)
    )
    for path, layer in one.layers.items():
        assert (layer.products == four.layers[path].products).all()


def test_cost_counts_multiplications():
    # A layer of 8 inputs and 4 outputs: forward 32, moments 64, a gradient 96.
    assert cost_in_gradients({"": (8, 1, 4)}, LayerOptions()) == pytest.approx(1.0)
    sketched = LayerOptions(max_inputs=4, sketch_rank=2)
    assert cost_in_gradients({"": (8, 1, 4)}, sketched) == pytest.approx(0.5)


def test_recorded_moments_are_read_back(trained, tmp_path, monkeypatch):
    store = unroll.Store(tmp_path)
    first = record_statistics(trained, store=store)
    monkeypatch.setattr(
        "unroll.unrolling.subspaces.recorded.input_statistics",
        lambda *args, **kwargs: pytest.fail("computed again"),
    )
    second = record_statistics(trained, store=store)
    assert_same(first, second, 0.0)
    for field in dataclasses.fields(first):
        if field.name != "layers":
            assert getattr(first, field.name) == getattr(second, field.name)
    changed = dataclasses.replace(
        trained,
        state=trained.state._replace(params=jax.tree.map(np.negative, trained.state.params)),
    )
    # Another state or another option is another entry.
    for run, options in ((changed, LayerOptions()), (trained, LayerOptions(bias="moves"))):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            record_statistics(run, options, store=store)


POWER = np.arange(1, 1153) ** -1.5


@pytest.mark.parametrize(
    ("rule", "threshold", "expected"),
    [
        ("l1_singular", 0.9, 807),
        ("l1_singular", 0.95, 968),
        ("energy", 0.9, 41),
        ("energy", 0.95, 115),
    ],
)
def test_rank_rules_on_a_known_spectrum(rule, threshold, expected):
    assert rank(POWER, threshold, rule) == expected


@given(st.integers(1, 30), st.floats(0.01, 0.999), st.sampled_from(["l1_singular", "energy"]))
@settings(deadline=None, max_examples=50)
def test_rank_is_the_smallest_that_reaches_the_threshold(size, threshold, rule):
    values = np.sort(np.random.default_rng(size).exponential(size=size))[::-1]
    terms = np.sqrt(values) if rule == "l1_singular" else values
    count = rank(values, threshold, rule)
    share = terms.cumsum() / terms.sum()
    assert share[count - 1] >= threshold - 1e-9
    assert count == 1 or share[count - 2] < threshold


def test_one_dominating_direction_is_protected():
    assert rank(np.array([1.0, 0, 0]), 0.5, "l1_singular") == 1
    assert rank(np.zeros(3), 0.5, "energy") == 1


def test_no_negative_direction_is_protected():
    """An eigenvalue of -3 must not come before one of 1, as it does with singular values."""
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    found = spectrum(vectors @ np.diag([5.0, 1.0, -3.0, 0.0]) @ vectors.T)
    assert found.clipped == pytest.approx(3 / 9)
    assert spectrum(-np.eye(3)).clipped == 1.0  # nothing is left to be protected
    basis, report = protected("layer", found, RankRule("energy", 0.99))
    assert report["rank"] == 2
    np.testing.assert_allclose(basis.directions.T @ vectors[:, 2], 0, atol=1e-12)


def test_thresholds_of_single_layers_and_of_frozen_ones():
    spectra = {name: spectrum(np.diag([4.0, 3.0, 2.0, 1.0])) for name in "abc"}
    rule = RankRule("energy", 0.3, thresholds=(("b", 0.9), ("c", 1)))
    bases, reports = all_bases(spectra, rule)
    assert {name: basis.directions.shape[1] for name, basis in bases.items()} == {"a": 1, "b": 3}
    assert reports["c"]["rank"] == 4  # frozen: no basis, no update
    none, _ = all_bases(spectra, RankRule("energy", 0))
    assert all(basis.directions.shape == (4, 0) for basis in none.values())
    with pytest.raises(unroll.InputError, match="no layer 'd'"):
        all_bases(spectra, RankRule(thresholds=(("d", 0.5),)))


def test_importance_scales_by_singular_values():
    found = spectrum(np.diag([4.0, 1.0, 0.0]))
    basis, _ = protected("a", found, RankRule("energy", 0.99, importance=3.0))
    # (a + 1) s / (a s + s_max) for s = 2 and 1.
    np.testing.assert_allclose(basis.scales, [1.0, 4 / 5])
    hard, _ = protected("a", found, RankRule("energy", 0.99, importance=1e9))
    np.testing.assert_allclose(hard.scales, 1.0)


def test_a_sketch_finds_a_matrix_of_low_rank_exactly():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 60))
    gram = rows.T @ rows
    found = sketched_spectrum(
        gram @ sketch_matrix("a", 60, 20), sketch_matrix("a", 60, 20), np.trace(gram)
    )
    exact = spectrum(gram)
    np.testing.assert_allclose(found.values[:12], exact.values[:12], rtol=1e-9)
    ours, theirs = found.vectors[:, :12], exact.vectors[:, :12]
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-9)
    assert found.total == pytest.approx(np.trace(gram))


def test_a_sketch_knows_how_much_it_missed_and_no_l1_share():
    gram = np.diag(np.arange(60, 0, -1.0))
    test = sketch_matrix("a", 60, 20)
    found = sketched_spectrum(gram @ test, test, np.trace(gram))
    _, report = protected("a", found, RankRule("energy", 0.9))
    assert report["rank"] == len(found.values) and report["energy"] < 0.9
    with pytest.raises(unroll.InputError, match="rank_rule='energy'|energy"):
        protected("a", found, RankRule("l1_singular", 0.9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("svd(threshold=0.9)", "unknown rank rule 'svd'"),
        ("energy(gamma=0.9)", "no 'gamma'"),
        ("energy(threshold=1.5)", "between 0 and 1"),
        ("energy(bias='fixed')", "bias must be"),
        ("energy(importance=0)", "importance"),
        ("energy(max_inputs=0)", "max_inputs"),
    ],
)
def test_bad_projections(text, message):
    with pytest.raises(unroll.InputError, match=message):
        parse_projection(text)


def test_statistics_that_do_not_fit_are_refused(trained):
    whole = moments(trained, trained.dataset)
    with pytest.raises(unroll.InputError, match="other layers or options"):
        whole.minus(moments(trained, trained.dataset, LayerOptions(bias="moves")))
    state = trained.state
    with pytest.raises(unroll.InputError, match="64 examples, 64"):
        retained_bases(
            whole, trained.spec, state.params, state.model_state, trained.dataset, RankRule()
        )
    with pytest.raises(unroll.InputError, match="one for each of 64"):
        moments(trained, trained.dataset, weights=np.ones(3))
