"""What derivatives and plain SGD assume: refused or warned about, wherever it is needed."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import unroll
from unroll.training.optimizer import sgd_rule
from unroll.unrolling.curvature import first_examples
from unroll.unrolling.differentiability import kink_warning
from unroll.unrolling.expansion import expansion, single_gradient_at
from unroll.unrolling.outcomes import mean_loss
from unroll.unrolling.tangents import train_with_tangents
from unroll.unrolling.tracin import tracin
from unroll.unrolling.unlearning_error import unlearning_errors

FORGET = np.array([3, 4])
RATE = unroll.optax_call("cosine_decay_schedule", 0.01, 10)


def by_method(text):
    return lambda run: unroll.unlearn(text, unroll.Problem(run, FORGET))


FOLLOWING = {text: by_method(text) for text in ("deltagrad", "sampled", "segments(examples=8)")}
SGD_ONLY = {
    **FOLLOWING,
    **{
        text: by_method(text)
        for text in ("single_gradient", "checkpointed_gradient", "amnesiac(only='forget')")
    },
    "expansion": expansion,
    "single_gradient_at": lambda run: single_gradient_at(run, FORGET),
    "unlearning_errors": lambda run: unlearning_errors(run, None, first_examples(run.dataset, 8)),
    "tracin": lambda run: tracin(run, mean_loss(run.spec, run.dataset)),
}


def short_run(blobs, spec):
    schedule = np.arange(16, dtype=np.int32).reshape(2, 8)
    return unroll.train(spec, blobs[0], schedule, record=unroll.Record(every=1))


@pytest.fixture(scope="module", params=["adam", "adamw"])
def scheduled(request, blobs, mlp_spec):
    """Adam's state holds two counters when its learning rate follows a schedule."""
    optimizer = unroll.optax_call(request.param, RATE)
    return short_run(blobs, unroll.TrainSpec(mlp_spec.model, optimizer=optimizer))


@pytest.mark.parametrize("asked", SGD_ONLY)
def test_adam_with_a_schedule_is_refused(scheduled, asked):
    with pytest.raises(unroll.InputError, match="needs plain sgd"):
        SGD_ONLY[asked](scheduled)


def test_no_steps_have_no_learning_rates():
    assert sgd_rule(unroll.optax_call("sgd", RATE), 0).learning_rates.shape == (0,)


class Halved(nn.Module):
    """Computes in bfloat16, with parameters in float32 or in bfloat16."""

    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.dtype(self.param_dtype))(x)
        return nn.Dense(3)(x.astype(jnp.float32))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def half(request, blobs):
    return short_run(blobs, unroll.TrainSpec(Halved(request.param)))


@pytest.mark.parametrize("asked", [*FOLLOWING, "taylor(order=1)"])
def test_half_precision_is_refused(half, asked):
    wanted = "a Taylor series" if asked.startswith("taylor") else asked.split("(")[0]
    with pytest.raises(unroll.InputError, match=f"bfloat16.*in float32 to have {wanted}"):
        by_method(asked)(half)


def test_half_precision_has_no_tangents(half):
    with pytest.raises(unroll.InputError, match="bfloat16.*in float32 to have tangents"):
        train_with_tangents(half.spec, half.dataset, half.schedule, {"a": [3]})


class Pooled(nn.Module):
    """Says that it pools by maxima."""

    pool: str = "max"
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        return nn.Dense(3)(x.reshape(len(x), 3, 2).max(axis=2))


def test_kinks_are_warned_about(blobs):
    spec = unroll.TrainSpec(Pooled())
    run = short_run(blobs, spec)
    assert "max pooling has kinks" in by_method("taylor(order=1)")(run).info["warning"]
    tangents = train_with_tangents(spec, run.dataset, run.schedule, {"a": [3]})
    assert "max pooling has kinks" in tangents.info["warning"]
    both = kink_warning(unroll.TrainSpec(Pooled(activation="relu")), "beware")
    assert both.startswith("relu and max pooling have kinks") and "beware" in both
    assert kink_warning(unroll.TrainSpec(Pooled(pool="avg")), "beware") is None
