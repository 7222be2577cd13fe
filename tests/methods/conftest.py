"""Problems of several tests: logistic regression with its closed form, batch normalisation."""

import dataclasses

import jax
import numpy as np
import pytest

import unroll

HEAD = ("head", "dense")


class Logistic:
    """Softmax regression in numpy, float64: `[features, C]` kernel and `[C]` bias."""

    def __init__(self, problem):
        self.problem = problem
        layer = problem.run.state.params
        for name in HEAD:
            layer = layer[name]
        self.kernel, self.bias = (
            np.asarray(layer[name], np.float64) for name in ("kernel", "bias")
        )

    def gradient(self, ids, labels, weights, at=None):
        """Weighted sum of the gradients of the examples' losses, divided by their number."""
        kernel, bias = (self.kernel, self.bias) if at is None else at
        inputs = self.problem.run.dataset.inputs[ids].astype(np.float64)
        logits = inputs @ kernel + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        residual = (shares - np.eye(3)[labels]) * np.asarray(weights)[:, None] / len(ids)
        return inputs.T @ residual, residual.sum(axis=0)

    def stepped(self, gradient, rate, at=None):
        start = (self.kernel, self.bias) if at is None else at
        return tuple(w - rate * g for w, g in zip(start, gradient, strict=True))

    @staticmethod
    def of(params):
        layer = params
        for name in HEAD:
            layer = layer[name]
        return np.asarray(layer["kernel"]), np.asarray(layer["bias"])


def in_float64(run):
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), run.state.params)
    return dataclasses.replace(run, state=run.state._replace(params=params))


@pytest.fixture
def logistic(blobs):
    """`(problem, Logistic)` in float64, of a run with example weights, for a test in float64."""
    train, _ = blobs
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(train)).astype(np.float32)
    spec = unroll.TrainSpec(unroll.models.build("linear", num_classes=3))
    schedule = unroll.data.make_schedule(0, len(train), batch_size=24, epochs=1)
    run = unroll.train(spec, train, schedule, weights=weights)
    problem = unroll.Problem(in_float64(run), np.array([3, 17, 40, 77]))
    with jax.enable_x64(True):
        yield problem, Logistic(problem)


@pytest.fixture(scope="session")
def normalized_problem(images):
    """A small convolutional network with batch normalisation and a penalty; 10 of 64 to forget."""
    train, _ = images
    spec = unroll.TrainSpec(
        unroll.models.build("cnn", num_classes=3, channels=(4,), normalization="batch"),
        objective=unroll.Objective(l2=1e-3),
    )
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=1)
    return unroll.Problem(unroll.train(spec, train, schedule), np.arange(5, 64, 6))
