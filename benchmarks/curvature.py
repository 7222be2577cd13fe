"""The largest Hessian eigenvalue: `unroll.unrolling.curvature` against PyHessian.

Same weights, same batch, same relative tolerance on the eigenvalue. PyHessian stops when two
successive estimates differ by less than it, this library when the estimated error of the value is
below it (`criterion="value"`). Both residuals are stated, and the error of either value against one
that was taken to a residual a hundred times smaller.
"""

import itertools
import time
import warnings

import jax
import numpy as np
import peers
import torch
from cases import Case, make_case
from jax.flatten_util import ravel_pytree
from pyhessian import hessian
from timing import agree, turn_about
from work import DifferentWorkError, Outcome, Settings

import unroll
from unroll.unrolling.curvature import CurvatureBatch, largest_eigenvalue
from unroll.unrolling.lanczos import Eigenpair

_TOLERANCE = 1e-3
_MOST_PRODUCTS = 100
_AGREEMENT = 1e-2  # float32, two derivatives


def eigenvalue(
    settings: Settings, *, case: str, trained_steps: int, same_residual: bool = False, **arguments
) -> Outcome:
    """Seconds to the eigenvalue, with parameters and data in place.

    With `same_residual` ours stops at the residual with which PyHessian's last result ended, and
    not by the error of the value.
    """
    case = make_case(settings, case, **arguments)
    params = _trained(case, settings.choose(trained_steps, 2))
    setup = peers.best_setup(
        settings, case.images, lambda setup: _PeerHessian(case, params, setup).short_turn
    )
    peer = _PeerHessian(case, params, setup)
    rule = {"tolerance": _TOLERANCE, "criterion": "value"}
    if same_residual:
        peer.turn()
        rule = {"tolerance": max(peer.residual(), _TOLERANCE), "criterion": "residual"}
    found, ours_of = _measure(case, params, rule)
    ours, theirs = turn_about(ours_of, peer.turn, settings)
    if not all(pair.converged for pair in found):
        raise DifferentWorkError(f"ours did not converge in {_MOST_PRODUCTS} products")
    # Ours must be an eigenvalue of PyHessian's operator; its own result may have stopped elsewhere.
    best = found[-1]
    vector = ravel_pytree(params)[1](best.vector)
    check = agree("v^T H v of one v", [best.value], [peer.quotient(vector)], _AGREEMENT)
    products = sorted(pair.products for pair in found)
    residual = max(pair.residual / pair.sigma for pair in found)
    exact = _exact(case, params, settings.choose(_TOLERANCE / 100, _TOLERANCE))
    errors = [max(abs(pair.value / exact - 1) for pair in found), abs(peer.value / exact - 1)]
    check += (
        f"; ours {products[0]} to {products[-1]} products, residual at most {residual:.0e}, error "
        f"of the value at most {errors[0]:.0e}; theirs residual {peer.residual():.0e}, error "
        f"{errors[1]:.0e}"
    )
    return Outcome(ours, theirs, check, str(setup))


def _trained(case: Case, steps: int) -> dict:
    return unroll.train(case.spec, case.data, case.schedule(steps)).state.params


def _batch(case: Case) -> CurvatureBatch:
    return CurvatureBatch(case.data, np.arange(case.batch), chunk_size=case.batch)


def _exact(case: Case, params: dict, tolerance: float) -> float:
    """The eigenvalue to a residual at which its own error is of no account."""
    pair = largest_eigenvalue(
        case.spec, params, _batch(case), tolerance=tolerance, iterations=_MOST_PRODUCTS
    )
    return pair.value


def _measure(case: Case, params: dict, rule: dict):
    """Our eigenpairs, filled turn by turn, and a turn; each has a random start of its own."""
    batch = _batch(case)
    found: list[Eigenpair] = []
    seeds = itertools.count()

    def turn() -> float:
        begin = time.perf_counter()
        pair = largest_eigenvalue(
            case.spec,
            params,
            batch,
            iterations=_MOST_PRODUCTS,
            seed=next(seeds),
            **rule,
        )
        jax.block_until_ready(pair.vector)
        found.append(pair)
        return time.perf_counter() - begin

    return found, turn


class _PeerHessian:
    """PyHessian's power iteration on the same batch."""

    def __init__(self, case: Case, params: dict, setup: peers.Setup):
        self._case, self._setup = case, setup
        self._net = self._network(params)
        self._batch = (
            setup.inputs(case.data.inputs[: case.batch]),
            setup.labels(case.data.labels[: case.batch]),
        )
        self.value = float("nan")
        self._vector: list[torch.Tensor] = []

    def _network(self, params: dict) -> torch.nn.Module:
        return self._setup.network(self._case.peer(params=params))

    def _hessian(self) -> hessian:
        self._net.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the cycle of references that it makes
            on_gpu = self._setup.device == "cuda"
            return hessian(self._net, torch.nn.CrossEntropyLoss(), data=self._batch, cuda=on_gpu)

    def _search(self, iterations: int) -> float:
        begin = time.perf_counter()
        operator = self._hessian()
        values, vectors = operator.eigenvalues(maxIter=iterations, tol=_TOLERANCE)
        self._setup.finish()
        seconds = time.perf_counter() - begin
        self.value, self._vector = values[0], vectors[0]
        return seconds

    def turn(self) -> float:
        return self._search(_MOST_PRODUCTS)

    def short_turn(self) -> float:
        return self._search(3)

    def quotient(self, vector: dict) -> float:
        """`v^T H v` of a vector with the structure of the flax parameters."""
        parts = [part.detach() for part in self._network(vector).parameters()]
        return _dot(parts, self._product(parts))

    def residual(self) -> float:
        """`||H v - value v|| / |value|` of the last result."""
        product = self._product(self._vector)
        value = _dot(self._vector, product)
        rest = [a - value * b for a, b in zip(product, self._vector, strict=True)]
        return _dot(rest, rest) ** 0.5 / abs(value)

    def _product(self, vector: list[torch.Tensor]) -> list[torch.Tensor]:
        operator = self._hessian()
        return torch.autograd.grad(operator.gradsH, operator.params, vector)


def _dot(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return sum(float((one * other).sum()) for one, other in zip(ones, others, strict=True))
