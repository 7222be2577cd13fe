"""Unlearning error: proxies of the verification error that need no retraining (arXiv 2109.13398).

With t steps of size eta since w_0, displacement `D = ||w_t - w_0||`, sigma the largest singular
value of the training loss's Hessian, averaged over the run, and g_f what one use of the forgotten
examples adds to the gradient of a batch:

    paper      eta^2 (t / 2) D sigma           as the paper's reference code has it
    eta1       eta ((t - 1) / 2) D sigma       the bound on the dropped sum of f(i): D has an eta
    gradnorm   eta^2 t sigma ||g_f||           leading term, forget batch used once, at the start
    leading    sigma ||sum_u eta_u (sum_{u<s<t} eta_s) g_u||       the same for any uses u

None is tight. `paper` and `eta1` do not know what is to be forgotten; within a run all grow with t,
as the verification error does, so a correlation within one run says little: compare with t, D and
eta t sigma. At t = 0, and for `eta1` and `leading` at t = 1, the proxies are 0, and so is the error
of single-gradient unlearning. g_f is a gradient of the loss: the forgotten examples' share of a
singular-value penalty is left out, and the notes of the result say so.

Design: one walk along the recorded states, with a warm-started sigma on a batch that is stated once
and kept. Rejected: sigma on the current training batch, as parts of the reference code have it: its
scatter from batch to batch hides how curvature changes along the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from unroll import tree
from unroll.checks import whole_number
from unroll.data.forget import check_forget_ids
from unroll.errors import DivergenceError, InputError
from unroll.training.run import Progress, Run
from unroll.types import Params
from unroll.unrolling.curvature import CurvatureBatch, largest_eigenvalue
from unroll.unrolling.expansion import recorded_steps
from unroll.unrolling.forget_gradient import check_assumptions, sgd_of_run, weighted_gradient
from unroll.unrolling.step_response import left_out


def paper(eta: float, t: int, displacement: float, sigma: float) -> float:
    """`eta^2 (t / 2) D sigma`: the scaling of the reference code, with one eta too many."""
    return eta**2 * t / 2 * displacement * sigma


def eta1(eta: float, t: int, displacement: float, sigma: float) -> float:
    """`eta ((t - 1) / 2) D sigma`: what the derivation gives; 0 at t = 0, like t = 1."""
    return eta * max(t - 1, 0) / 2 * displacement * sigma


def gradnorm(eta: float, t: int, gradient_norm: float, sigma: float) -> float:
    """`eta^2 t sigma ||g_f||`: leading term of the error for a forget batch used once, first."""
    return eta**2 * t * sigma * gradient_norm


def named_proxies(
    eta: float, t: int, displacement: float, sigma: float, gradient_norm: float | None = None
) -> dict[str, float]:
    """The three proxies by name; without a gradient norm, `gradnorm` is left out.

    Args:
      eta: learning rate; with momentum mu the effective one, eta / (1 - mu).
      t: steps since w_0.
      displacement: `||w_t - w_0||`.
      sigma: largest singular value of the Hessian.
      gradient_norm: `||g_f||` at w_0.
    """
    proxies = {
        "paper": paper(eta, t, displacement, sigma),
        "eta1": eta1(eta, t, displacement, sigma),
    }
    if gradient_norm is not None:
        proxies["gradnorm"] = gradnorm(eta, t, gradient_norm, sigma)
    return proxies


@dataclasses.dataclass(frozen=True)
class UnlearningError:
    """The proxies at one recorded step.

    Attributes:
      step: step of the run.
      t: steps since the start of the expansion.
      learning_rate: eta: mean over these t steps, over 1 - mu with momentum mu.
      eigenvalue: of largest magnitude, signed, at the latest step where it was measured.
      residual: of that eigenvalue.
      sigma: its magnitude.
      sigma_average: plain mean of all sigmas from the start on.
      displacement: D.
      gradient_norm: `||g_f||` at the start; `None` without a forget set.
      proxies: by name, with `sigma_average`.
      current: by name, with `sigma`.
      accumulated: by name, summed over segments; empty where none were asked for.
    """

    step: int
    t: int
    learning_rate: float
    eigenvalue: float
    residual: float
    sigma: float
    sigma_average: float
    displacement: float
    gradient_norm: float | None
    proxies: dict[str, float]
    current: dict[str, float]
    accumulated: dict[str, float]

    @property
    def eta_t_sigma(self) -> float:
        """`eta t sigma_average`: without a unit; from about 5 on, single gradients do harm."""
        return self.learning_rate * self.t * self.sigma_average


@dataclasses.dataclass(frozen=True)
class UnlearningErrors:
    """Unlearning errors along a run.

    Attributes:
      rows: one for each step asked for, ascending.
      start: the step of w_0.
      start_eigenvalue: of largest magnitude, signed, at the start.
      batch: the examples that curvature was measured on.
      products: Hessian-vector products spent on sigma.
      notes: what a reader of the numbers has to know.
    """

    rows: tuple[UnlearningError, ...]
    start: int
    start_eigenvalue: float
    batch: str
    products: int
    notes: tuple[str, ...]


class _Sigmas:
    """Warm-started measurements of the largest eigenvalue along a run."""

    def __init__(self, run: Run, batch: CurvatureBatch, tolerance: float, iterations: int):
        self._run, self._batch = run, batch
        self._options = {"tolerance": tolerance, "iterations": iterations}
        self._warm = None
        self.values: list[float] = []
        self.residual = 0.0
        self.unconverged: list[int] = []
        self.products = 0

    def measure(self, step: int) -> None:
        state = self._run.snapshots[step]
        try:
            found = largest_eigenvalue(
                self._run.spec,
                state.params,
                self._batch,
                model_state=state.model_state,
                step=step,
                start=self._warm,
                **self._options,
            )
        except DivergenceError as error:
            raise DivergenceError(f"unlearning error at step {step}: {error}") from None
        self._warm, self.residual = found.vector, found.residual
        self.values.append(found.value)
        self.products += found.products
        if not found.converged:
            self.unconverged.append(step)

    def average(self, first: int = 0) -> float:
        return float(np.mean(np.abs(self.values[first:])))


class _ForgetGradient:
    """Norms of what the forgotten examples add to the gradients of a run."""

    def __init__(self, run: Run, ids: np.ndarray):
        self._run, self._ids = run, ids
        self._data = run.dataset.take(ids) if len(ids) else None

    def _norm(self, params: Params, per_example: np.ndarray) -> float:
        if self._data is None:
            return 0.0
        weights = per_example * self._run.weights[self._ids] / self._run.schedule.shape[1]
        norm = tree.norm(weighted_gradient(self._run.spec, params, self._data, weights))
        if not np.isfinite(norm):
            raise DivergenceError("unlearning error: the gradient of the forget set is not finite")
        return norm

    def one_use(self, params: Params) -> float:
        """`||(1/B) sum_{x in S} omega[x] grad loss(params; x)||`."""
        return self._norm(params, np.ones(len(self._ids)))

    def leading(self, params: Params, rates: np.ndarray, start: int) -> float:
        """`||sum_u rates[u] (sum_{s>u} rates[s]) g_u(params)||`; rates `[t]` from `start` on."""
        # Summed from the end, so that nothing comes after the last step to the last bit.
        later = np.append(np.cumsum(rates[:0:-1])[::-1], 0.0)
        per_step = rates * later
        uses = self._run.schedule[start : start + len(rates)]
        filled = uses >= 0
        total = np.zeros(len(self._run.dataset))
        np.add.at(total, uses[filled], np.broadcast_to(per_step[:, None], uses.shape)[filled])
        return self._norm(params, total[self._ids])


class _Segments:
    """Proxies summed over segments, each with its own displacement, steps, rate and sigma."""

    def __init__(self, run: Run, gradient: _ForgetGradient | None, sigmas: _Sigmas, start: int):
        self._run, self._gradient, self._sigmas = run, gradient, sigmas
        self._closed: dict[str, float] = {}
        self._begin(start)

    def _begin(self, step: int) -> None:
        self._start, self._params = step, self._run.snapshots[step].params
        self._first = len(self._sigmas.values) - 1
        self._norm = self._gradient.one_use(self._params) if self._gradient else None

    def total(self, step: int, rates: np.ndarray) -> dict[str, float]:
        """The finished segments and the current one up to `step`."""
        open_segment = named_proxies(
            float(rates[self._start : step].mean()),
            step - self._start,
            tree.distance(self._run.snapshots[step].params, self._params),
            self._sigmas.average(self._first),
            self._norm,
        )
        return {name: self._closed.get(name, 0.0) + open_segment[name] for name in open_segment}

    def close(self, step: int, rates: np.ndarray) -> None:
        self._closed = self.total(step, rates)
        self._begin(step)


def unlearning_errors(
    run: Run,
    forget: np.ndarray | None,
    batch: CurvatureBatch,
    *,
    start: int = 0,
    steps: Iterable[int] | None = None,
    sigma_every: int = 1,
    segments: Iterable[int] | None = None,
    tolerance: float = 1e-3,
    iterations: int = 40,
    progress: Progress | None = None,
) -> UnlearningErrors:
    """Unlearning errors at the recorded steps of a run trained with sgd.

    Args:
      run: the recorded run. Varying learning rates enter as their mean since the start, and
        momentum mu as a factor of 1 / (1 - mu); the notes of the result say so.
      forget: ids of the examples to forget, for `gradnorm` and `leading`; `None` leaves these out.
      batch: where curvature is measured.
      start: recorded step of w_0, for example where fine-tuning began.
      steps: recorded steps at which a row is wanted; by default all after `start`.
      sigma_every: sigma is measured at the start and at every so many of the steps that are looked
        at (rows and ends of segments); the latest one serves in between.
      segments: recorded steps at which a segment ends and the next begins, for the accumulated
        form; in each, sigma is the mean of what was measured from its start on, and g_f is taken
        at its start.
      tolerance: residual over magnitude at which an eigenvalue counts as converged.
      iterations: at most so many Lanczos iterations for each sigma.
      progress: called with (states looked at, states in all).

    Raises:
      InputError: for another optimiser than sgd, a run that recorded nothing between its start
        and its end, a step that is not recorded, bad ids, or with a forget set a run that
        `check_assumptions` refuses.
      DivergenceError: if the curvature or the forget gradient is not finite.
    """
    whole_number("sigma_every", sigma_every)
    rule = sgd_of_run(run)
    rates = rule.learning_rates / (1.0 - rule.momentum)
    if not any(0 < step < run.steps for step in run.snapshots):
        raise InputError(
            "the run recorded nothing between its start and its end; the unlearning error needs "
            "recorded states: train with record=Record(every=...)"
        )
    rows_at = recorded_steps(run, start, steps)
    ends = None if segments is None else recorded_steps(run, start, segments)
    gradient = None
    if forget is not None:
        ids = check_forget_ids(forget, len(run.dataset), allow_empty=True)
        check_assumptions(run, "the gradient of a forget set")
        gradient = _ForgetGradient(run, ids)

    sigmas = _Sigmas(run, batch, tolerance, iterations)
    rows = tuple(_walk(run, start, rows_at, ends, rates, sigmas, sigma_every, gradient, progress))
    notes = _notes(rule, rates[start : rows_at[-1]], sigmas)
    if gradient:
        notes += tuple(left_out(run).values())
    return UnlearningErrors(rows, start, sigmas.values[0], str(batch), sigmas.products, notes)


def _walk(run, start, rows_at, ends, rates, sigmas, sigma_every, gradient, progress):
    """Yields the rows; `ends` is `None` without segments."""
    origin = run.snapshots[start].params
    norm = gradient.one_use(origin) if gradient else None
    sigmas.measure(start)
    segments = None if ends is None else _Segments(run, gradient, sigmas, start)
    looked_at = [step for step in sorted({*rows_at, *(ends or ())}) if step <= rows_at[-1]]
    for index, step in enumerate(looked_at, start=1):
        if index % sigma_every == 0:
            sigmas.measure(step)
        if step in rows_at:
            row = _row(run, start, step, origin, rates, sigmas, gradient, norm)
            accumulated = segments.total(step, rates) if segments else {}
            yield dataclasses.replace(row, accumulated=accumulated)
        if segments and step in ends:
            segments.close(step, rates)
        if progress is not None:
            progress(index, len(looked_at))


def _row(run, start, step, origin, rates, sigmas, gradient, norm) -> UnlearningError:
    eigenvalue = sigmas.values[-1]
    between = rates[start:step]
    eta, t = float(between.mean()), step - start
    displacement = tree.distance(run.snapshots[step].params, origin)
    leading = gradient.leading(origin, between, start) if gradient else None

    def proxies(sigma: float) -> dict[str, float]:
        named = named_proxies(eta, t, displacement, sigma, norm)
        return named if leading is None else {**named, "leading": sigma * leading}

    return UnlearningError(
        step=step,
        t=t,
        learning_rate=eta,
        eigenvalue=eigenvalue,
        residual=sigmas.residual,
        sigma=abs(eigenvalue),
        sigma_average=sigmas.average(),
        displacement=displacement,
        gradient_norm=norm,
        proxies=proxies(sigmas.average()),
        current=proxies(abs(eigenvalue)),
        accumulated={},
    )


def _notes(rule, rates: np.ndarray, sigmas: _Sigmas) -> tuple[str, ...]:
    notes = []
    if rule.momentum:
        notes.append(
            f"momentum {rule.momentum:g}: eta is the learning rate times "
            f"{1 / (1 - rule.momentum):g}, its total effect"
        )
    if np.ptp(rates) > 0:
        notes.append(
            f"the learning rate varies from {rates.min():g} to {rates.max():g}: eta is its mean "
            "since the start"
        )
    if sigmas.unconverged:
        notes.append(
            f"sigma is not converged at steps {sigmas.unconverged}: see the residuals, or raise "
            "iterations"
        )
    return tuple(notes)
