"""What S shards of R slices cost and save: rows of measurements and of simulations.

Design: a measurement deletes one example and then the rest of a forget set, and compares the result
bit for bit with a system trained from scratch without them, which no store may help; the claim
"exact" in a row is therefore checked in every row. Rejected: trusting the addresses in the store,
which would compare a model with itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from unroll.checkpoint import Store
from unroll.data.dataset import Dataset
from unroll.deletion.aggregation import aggregate
from unroll.deletion.costs import (
    ADVERSARIAL,
    RANDOM,
    adversarial_stream,
    expected_cost,
    exponential_probabilities,
    simulate_cost,
    weighted_stream,
)
from unroll.deletion.sharding import aware_assignment, random_assignment
from unroll.deletion.sisa import Sisa, SisaPlan, train_sisa
from unroll.errors import InputError
from unroll.metrics.outputs import accuracy
from unroll.training.run import Progress, part_of_progress

STREAMS = ("uniform", "exponential", "adversarial")
ASSIGNMENTS = ("random", "aware_requests", "aware_cost", "aware_size")


@dataclasses.dataclass(frozen=True)
class SisaRow:
    """One system with one aggregation, before and after a deletion.

    Attributes:
      dataset, model, forget: names.
      shards, slices: S and R.
      seed: of assignment and training.
      aggregation: how constituents are combined.
      before, after, scratch: accuracies by split (forget, retain, test): of the system before the
        deletion, after it, and of one trained from scratch without the forget set.
      exact: whether the last two have the same bits.
      state_bytes: of the states after all stages.
      training_gradients: example gradients of the training of all constituents.
      request_gradients: of deleting the first example of the forget set.
      deletion_gradients: of deleting the others, all at once.
      single_gradients: of training the single model again after the first request, with as many
        epochs.
      shards_touched, slices_retrained: by the deletion of the others.
      training_seconds, request_seconds, deletion_seconds: compilation not counted.
      note: why a row has no numbers.
    """

    dataset: str
    model: str
    forget: str
    shards: int
    slices: int
    seed: int
    aggregation: str
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    scratch: dict[str, float] | None = None
    exact: bool | None = None
    state_bytes: int | None = None
    training_gradients: int | None = None
    request_gradients: int | None = None
    deletion_gradients: int | None = None
    single_gradients: int | None = None
    shards_touched: int | None = None
    slices_retrained: int | None = None
    training_seconds: float | None = None
    request_seconds: float | None = None
    deletion_seconds: float | None = None
    note: str | None = None

    @property
    def cell(self) -> tuple[int, int, int]:
        """What all rows of one measurement share."""
        return self.shards, self.slices, self.seed


def measure_sisa(
    plan: SisaPlan,
    forget: np.ndarray,
    test: Dataset,
    aggregations: Sequence[str],
    *,
    epochs: int,
    mode: str = "auto",
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[dict]:
    """Trains, deletes, trains from scratch, and judges all three.

    Args:
      plan: of the system.
      forget: ids to delete, two or more.
      test: examples that were never trained on.
      aggregations: see `aggregate`; a row for each.
      epochs: of the single model that costs are compared with.
      mode: see `train_sisa`.
      store: for the system and its deletions, not for the one from scratch.
      progress: called with (steps done, steps in all).

    Returns:
      The measured fields of `SisaRow`.

    Raises:
      InputError: if there are fewer than two examples to delete, or whatever training raises.
      DivergenceError: if a constituent diverges.
    """
    if len(forget) < 2:
        raise InputError("a trade-off is measured on two examples to forget or more")
    reports = [part_of_progress(progress, part, 4) for part in range(4)]
    system = train_sisa(plan, mode=mode, store=store, progress=reports[0])
    once, first = system.delete(forget[:1], progress=reports[1])
    after, rest = once.delete(forget[1:], progress=reports[2])
    scratch = train_sisa(plan, removed=forget, mode=mode, progress=reports[3])
    shared = dict(
        exact=after.hash == scratch.hash,
        state_bytes=system.state_bytes,
        training_gradients=round(plan.passes * len(plan.dataset)),
        request_gradients=first.example_gradients,
        deletion_gradients=rest.example_gradients,
        single_gradients=epochs * (len(plan.dataset) - 1),
        shards_touched=rest.shards,
        slices_retrained=rest.slices,
        training_seconds=system.seconds,
        request_seconds=first.seconds,
        deletion_seconds=rest.seconds,
    )
    parts = {"forget": forget, "retain": after.remaining}
    splits = {name: plan.dataset.take(ids) for name, ids in parts.items()} | {"test": test}
    judged = [_outputs(each, splits) for each in (system, after, scratch)]
    rows = []
    for aggregation in aggregations:
        found = [
            {
                split: accuracy(aggregate(logits, aggregation), splits[split].labels)
                for split, logits in outputs.items()
            }
            for outputs in judged
        ]
        names = ("before", "after", "scratch")
        rows.append(dict(aggregation=aggregation, **dict(zip(names, found, strict=True)), **shared))
    return rows


def _outputs(system: Sisa, splits: dict[str, Dataset]) -> dict[str, np.ndarray]:
    return {name: system.logits(data) for name, data in splits.items()}


@dataclasses.dataclass(frozen=True)
class CostRow:
    """Retraining per request, expected and simulated.

    Attributes:
      examples, shards, slices: N, S and R.
      stream: one of `STREAMS`.
      assignment: one of `ASSIGNMENTS`.
      requests: number of requests.
      batch: how many are served at once.
      simulated: mean example gradients per request.
      standard_error: of that mean over assignments and streams.
      expected: of theory, `None` where there is none.
      single: example gradients per request where one model is trained again for each batch.
    """

    examples: int
    shards: int
    slices: int
    stream: str
    assignment: str
    requests: int
    batch: int
    simulated: float
    standard_error: float
    expected: float | None
    single: float


def measure_cost(
    examples: int,
    shards: int,
    epochs: Sequence[int],
    *,
    single_epochs: int,
    stream: str = "uniform",
    assignment: str = "random",
    requests: int = 1,
    batch: int = 1,
    rate: float = 5.0,
    draws: int = 20,
    seed: int = 0,
) -> CostRow:
    """Simulates requests to systems with the assignments of several seeds; trains nothing.

    Args:
      examples: number N of examples.
      shards: number S of shards.
      epochs: of each of the R stages.
      single_epochs: of the single model that costs are compared with.
      stream: `uniform`, `exponential` (probabilities that fall with the id), `adversarial`.
      assignment: `random`, or one that knows the probabilities: `aware_` and its balance, see
        `aware_assignment`.
      requests: number of requests, a multiple of `batch`.
      batch: how many are served at once.
      rate: of the exponential stream.
      draws: number of assignments, each with a stream of its own.
      seed: of the first of them.

    Raises:
      InputError: if something does not fit together.
    """
    if stream not in STREAMS or assignment not in ASSIGNMENTS:
        raise InputError(
            f"unknown stream {stream!r} or assignment {assignment!r}; choose from {STREAMS} and "
            f"{ASSIGNMENTS}"
        )
    likely = exponential_probabilities(examples, rate)
    probabilities = likely if stream == "exponential" else np.ones(examples)
    slices, totals = len(epochs), []
    for draw in range(seed, seed + draws):
        if assignment == "random":
            dealt = random_assignment(draw, examples, shards, slices)
        else:
            balance = assignment.removeprefix("aware_")
            dealt = aware_assignment(draw, likely, shards, slices, balance=balance)
        if stream == "adversarial":
            ids = adversarial_stream(dealt, epochs, requests, batch=batch)
        else:
            ids = weighted_stream(draw + 2**31, probabilities, requests)
        totals.append(simulate_cost(dealt, epochs, ids, batch=batch).sum() / requests)
    expected = None
    if assignment == "random":
        kind = ADVERSARIAL if stream == "adversarial" else RANDOM
        expected = expected_cost(
            examples, shards, epochs, stream=kind, requests=requests, batch=batch
        )
    served = np.arange(batch, requests + 1, batch)
    return CostRow(
        examples=examples,
        shards=shards,
        slices=slices,
        stream=stream,
        assignment=assignment,
        requests=requests,
        batch=batch,
        simulated=float(np.mean(totals)),
        standard_error=float(np.std(totals, ddof=1) / np.sqrt(draws)) if draws > 1 else 0.0,
        expected=expected,
        single=float(single_epochs * (examples - served).sum() / requests),
    )
