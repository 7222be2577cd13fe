"""The forgetting loss and the rules that end it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy

import unroll
from unroll.unrolling.bounded_ascent import BoundedAscent
from unroll.unrolling.stopping import stopping_rule

LOGITS = np.random.default_rng(0).normal(size=(6, 4))
LABELS = np.array([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("weight", [0.0, 0.2, -0.2])
@pytest.mark.parametrize("over", ["all", "others"])
def test_equals_the_formula(weight, over):
    with jax.enable_x64(True):
        loss = BoundedAscent(0.1, weight, over)
        found = loss.example_losses(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    expected = []
    for row, label in zip(LOGITS, LABELS, strict=True):
        kept = row if over == "all" else np.delete(row, label)
        expected.append(
            -np.log(1 - softmax(row)[label] + 0.1) - weight * scipy_entropy(softmax(kept))
        )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_sign_of_the_weight_says_where_the_entropy_goes():
    labels = jnp.asarray(LABELS)

    def entropy_after_a_step(weight):
        loss = BoundedAscent(0.05, weight)
        slope = jax.grad(lambda at: loss.example_losses(at, labels).sum())(jnp.asarray(LOGITS))
        return scipy_entropy(softmax(LOGITS - 0.01 * slope, axis=1), axis=1).sum()

    assert entropy_after_a_step(5.0) > entropy_after_a_step(0.0) > entropy_after_a_step(-5.0)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4, 1e30])
@pytest.mark.parametrize("over", ["all", "others"])
def test_value_and_slope_are_finite_and_bounded(size, over):
    """At p_y = 1 and p_y = 0, and where a softmax in float32 underflows."""
    logits = jnp.asarray([[size, 0.0, -size], [-size, size, 0.0]], jnp.float32)
    for labels in ([0, 0], [2, 1]):
        loss = BoundedAscent(0.05, 0.2, over)
        values, slopes = jax.value_and_grad(
            lambda at, loss=loss, labels=labels: loss.example_losses(at, jnp.array(labels)).sum()
        )(logits)
        assert np.isfinite(values) and np.isfinite(slopes).all()
        # Slope 1/offset in p_y, times p_y (1 - p_y) <= 1/4; the entropy adds less than 1.
        assert np.abs(slopes).max() <= 20 / 4 + 1
    bound = BoundedAscent(0.05, 0.0).example_losses(logits, jnp.array([0, 0]))
    # 1 + offset in float32.
    assert -np.log(1.05) - 1e-6 <= bound.min() and bound.max() <= -np.log(0.05) + 1e-5


@pytest.mark.parametrize(
    "options", [dict(offset=0), dict(entropy_weight=np.nan), dict(entropy_over="some")], ids=str
)
def test_bad_options(options):
    with pytest.raises(unroll.InputError):
        BoundedAscent(**options)


def history(**columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("fixed_epochs", dict(forget=[0.0]), "go on"),
        ("fixed_epochs(count=1)", dict(forget=[0.0]), "go on"),
        ("fixed_epochs(count=1)", dict(forget=[0.0, 0.0]), "stop"),
        ("forget_level(level=0.1)", dict(forget=[1, 0.2]), "go on"),
        ("forget_level(level=0.1)", dict(forget=[1, 0.1]), "stop"),
        ("val_gap", dict(forget=[0.9, 0.8], held_out=[0.7, 0.7]), "go on"),
        ("val_gap", dict(forget=[0.9, 0.6], held_out=[0.7, 0.7]), "stop"),
        ("val_gap", dict(forget=[0.75, 0.5], held_out=[0.7, 0.7]), "previous"),
        ("val_gap", dict(forget=[0.5], held_out=[0.7]), "stop"),
        ("retain_drop(points=3)", dict(retain=[0.9, 0.88]), "go on"),
        ("retain_drop(points=3)", dict(retain=[0.9, 0.88, 0.86]), "stop"),
        ("held_out_drop", dict(held_out=[0.9, 0.84]), "stop"),
    ],
)
def test_verdicts(text, columns, expected):
    rule = stopping_rule(text)
    assert set(rule.reads) <= set(columns)
    assert rule.verdict(history(**columns)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("never", "unknown stopping rule 'never'"),
        ("val_gap(points=3)", "unknown option 'points'"),
        ("forget_level(level=5)", "out of range"),
        ("retain_drop(points='x')", "points"),
    ],
)
def test_bad_rules(text, message):
    with pytest.raises(unroll.InputError, match=message):
        stopping_rule(text)
