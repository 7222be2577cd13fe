"""SISA as a method of a study: a row on the scoreboard beside methods that change the one model.

    unroll.Study(..., methods=("taylor(order=2)", sisa_method(shards=4, slices=4)))

A SISA system is not a model of the study's specification, so it is judged so that no number says
more than it should:

- Its *twin* is the same system trained from scratch, without a store, on what remains. Distances
  relative to doing nothing and all gaps marked `twin` are to that one; they are zero because the
  bits are equal, which is found and not assumed. Distances in absolute units are left out, with a
  reason in words.
- Accuracies, losses and attacks read the aggregated prediction, and the gaps to independent
  retrains are those to single models: what sharding costs shows there.
- The cost of the request is that of the stages that are trained again, relative to retraining the
  single model. The training of the system before the request and the states that it stores are
  said beside it. The training from scratch for the comparison is no cost: nobody needs it who
  serves requests.

The system takes as many passes over the data as the run, has its batch size and its seed, and a
learning-rate schedule stretched to the steps of a constituent.

Design: a `Method` that says that its models are of their own kind (`Method.own_kind`), made by
whoever makes the study (`experiments/from_config.py` reads `sisa(...)` in a config). Rejected: an
entry in `unroll.methods.METHODS`, made when this module is imported: what a name means would depend
on imports, and tuning, attacks and refinement, which take their methods from there, need models of
the run's specification.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from unroll.checkpoint import FORMAT, Store
from unroll.checks import whole_number
from unroll.data.dataset import Dataset
from unroll.deletion.aggregated import aggregated_spec, aggregated_variables
from unroll.deletion.aggregation import AGGREGATIONS
from unroll.deletion.costs import slice_epochs
from unroll.deletion.lineage import record
from unroll.deletion.lineage_sisa import record_sisa
from unroll.deletion.sharding import random_assignment
from unroll.deletion.sisa import DeletionCost, Sisa, SisaPlan, train_sisa
from unroll.errors import InputError
from unroll.problem import Access, Method, OwnKind, Unlearned
from unroll.training.optimizer import OptaxCall
from unroll.training.run import Progress, Run, environment, part_of_progress
from unroll.training.spec import TrainSpec, description_hash

_STEP_COUNTS = ("decay_steps", "transition_steps", "warmup_steps", "transition_begin")


def sisa_method(
    shards: int = 4, slices: int = 4, aggregation: str = "mean_probability", mode: str = "auto"
) -> Method:
    """Deletes by training the stages of a SISA system again that read what is forgotten.

    Args:
      shards: number S of constituents; classes are dealt out evenly.
      slices: number R of slices of each.
      aggregation: how they predict together: `vote`, `mean_probability` or `mean_logits`.
      mode: as in `train_sisa`.

    Raises:
      InputError: if one of these is out of range.
    """
    whole_number("shards", shards)
    whole_number("slices", slices)
    if aggregation not in AGGREGATIONS:
        raise InputError(f"unknown aggregation {aggregation!r}; choose one of {AGGREGATIONS}")

    def unlearn(key: jax.Array, access: Access) -> Unlearned:
        del key  # a deletion draws nothing
        plan = matching_plan(access.run, shards, slices)
        absent = np.flatnonzero(access.run.weights == 0)
        settings = dict(mode=mode, store=access.store)
        reports = [part_of_progress(access.progress, part, 3) for part in range(3)]
        before = train_sisa(plan, removed=absent, progress=reports[0], **settings)
        forget = np.setdiff1d(access.forget_ids, absent)
        after, cost = before.delete(forget, progress=reports[1])
        if len(after.present) < shards:
            raise InputError(
                f"no example of shard {after.constituents.index(None)} is left; give fewer shards"
            )
        if access.store is not None:
            for system in (before, after):
                record_sisa(access.store, system)
        twin = _from_scratch(after, access.store, reports[2])
        return _unlearned(access.run, before, after, twin, cost, aggregation)

    options = dict(shards=shards, slices=slices, aggregation=aggregation, mode=mode)
    return Method("sisa", options, frozenset({"run"}), unlearn, own_kind=True)


def matching_plan(run: Run, shards: int, slices: int) -> SisaPlan:
    """The plan of a SISA system that is trained as a run was, see `plan_like`.

    Raises:
      InputError: if the run has weights other than 0 and 1 or started from a given state, and as
        `plan_like` does.
    """
    if not np.isin(run.weights, (0, 1)).all():
        raise InputError("sisa: the run weights its examples; a shard knows present or absent only")
    if run.initial is not None:
        raise InputError("sisa: the run started from a given state, which may know every example")
    return plan_like(run.spec, run.dataset, run.schedule, run.seed, shards, slices)


def plan_like(
    spec: TrainSpec, dataset: Dataset, schedule: np.ndarray, seed: int, shards: int, slices: int
) -> SisaPlan:
    """The plan of a SISA system that takes as many passes over the data as a single model.

    Each class is shared out evenly among the slices. A learning-rate schedule is stretched to the
    steps of a constituent.

    Args:
      spec: how the single model is trained.
      dataset: the training set.
      schedule: int32 `[T, B]` of the single model; gives passes and batch size.
      seed: of assignment and plan.
      shards: number S of constituents.
      slices: number R of slices of each.

    Raises:
      InputError: if there are more slices than examples or than the passes allow, or a
        learning-rate schedule has no length that could be changed.
    """
    assignment = random_assignment(seed, len(dataset), shards, slices, labels=dataset.labels)
    epochs = slice_epochs(int(np.bincount(schedule[schedule >= 0]).max()), slices)
    plan = SisaPlan(spec, dataset, assignment, epochs, schedule.shape[1], seed)
    steps = int(plan.steps().sum(axis=1).max())
    optimizer = _stretched(spec.optimizer, steps / len(schedule))
    return dataclasses.replace(plan, spec=dataclasses.replace(spec, optimizer=optimizer))


def _stretched(call: OptaxCall, factor: float) -> OptaxCall:
    """An optax expression whose schedules take `factor` times as many steps."""
    inner = [*call.args, *dict(call.kwargs).values()]
    nested = any(isinstance(value, OptaxCall) for value in inner)
    if not nested and not call.name.endswith(("schedule", "_decay")):
        return call
    if call.name.endswith(("schedule", "_decay")) and call.name != "constant_schedule":
        arguments = call.bound()
        counts = {name: arguments[name] for name in _STEP_COUNTS if arguments.get(name)}
        if not counts:
            raise InputError(
                f"sisa: a constituent takes fewer steps than the run, and {call.name} has no "
                "length that could be changed; choose a constant, linear or cosine schedule"
            )
        changed = {name: max(1, round(count * factor)) for name, count in counts.items()}
        if "decay_steps" in changed:  # counted from the start, so it ends after the warmup
            changed["decay_steps"] = max(changed["decay_steps"], changed.get("warmup_steps", 0) + 1)
        return OptaxCall(call.name, (), tuple(sorted({**arguments, **changed}.items())))

    def of(value: Any) -> Any:
        return _stretched(value, factor) if isinstance(value, OptaxCall) else value

    kwargs = tuple((name, of(value)) for name, value in call.kwargs)
    return OptaxCall(call.name, tuple(map(of, call.args)), kwargs)


def _from_scratch(after: Sisa, store: Store | None, progress: Progress | None) -> Sisa:
    """The system trained from scratch on what remains; nothing is read from the store but a hash.

    The hash is that of an earlier training from scratch. If it is that of the system after the
    deletion, the two have the same bits, and the system stands for both.
    """
    plan, address = after.plan, ""
    if store is not None:
        identity = {
            "format": FORMAT,
            "kind": "hash of a SISA system trained from scratch",
            "plan": plan.hash,
            "dataset": plan.dataset.fingerprint,
            "removed": after.removed.tolist(),
            "mode": after.mode,
            "width": after.width,
            **environment(plan.spec),
        }
        address = description_hash(identity)
        found = store.read(address, 0, np.zeros(32, np.uint8))
        if found is not None and found[0].tobytes().hex() == after.hash:
            return after
    settings = dict(mode=after.mode, width=after.width, mesh=after.mesh)
    scratch = train_sisa(plan, removed=after.removed, progress=progress, **settings)
    if store is not None:
        store.describe(address, identity)
        store.write(address, 0, np.frombuffer(bytes.fromhex(scratch.hash), np.uint8), {})
        record(store, address, {plan.dataset.fingerprint: after.remaining}, identity["kind"])
    return scratch


def _unlearned(
    run: Run, before: Sisa, after: Sisa, twin: Sisa, cost: DeletionCost, aggregation: str
) -> Unlearned:
    plan = after.plan
    assignment = plan.assignment
    params, model_state = aggregated_variables(after)
    own = OwnKind(
        f"SISA ({assignment.shards} shards of {assignment.slices} slices)",
        aggregated_spec(plan.spec, aggregation),
        aggregated_variables(before),
        aggregated_variables(twin),
    )
    kept = plan.kept(before.removed)
    prepared = int((np.asarray(plan.epochs) * np.cumsum(assignment.counts(kept), axis=1)).sum())
    info = {
        "preparation_gradients": prepared,
        "preparation_seconds": before.seconds,
        "stored_bytes": before.state_bytes,
        "stages": cost.slices,
        "constituents": cost.shards,
        "exact": after.hash == twin.hash,
        "warning": (
            f"{own.words}: before the request, {prepared / run.example_gradients:.2f} trainings of "
            f"the single model ({prepared:.3g} example gradients), not in the cost; states of "
            f"{before.state_bytes / 2**20:.3g} MiB are kept for it"
        ),
    }
    return Unlearned(
        params, model_state, cost.example_gradients, info, seconds=cost.seconds, own=own
    )
