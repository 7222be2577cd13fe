"""Many retrained models: `unroll.train_ensemble` against a PyTorch loop over models.

Each model has a seed of its own and is trained without a forget set of its own, on the same ids in
the same batches on both sides.
"""

import time

import numpy as np
import peers
from cases import Case, make_case
from timing import agree, turn_about
from work import Outcome, Settings

import unroll

_CHECKED_STEPS = 20
_TOLERANCE = 1e-2  # float32, over some steps of training
_FORGOTTEN = 0.01


def ensemble(settings: Settings, *, case: str, models: int, epochs: int, **arguments) -> Outcome:
    """Seconds for all models."""
    case = make_case(settings, case, **arguments)
    models = settings.choose(models, 3)
    schedules = retained_schedules(case, models, settings.choose(epochs, 1))
    ours_of = _train(case, schedules)
    trained, _ = ours_of()
    few = schedules[:2, :_CHECKED_STEPS]
    # The search trains few models for few steps; the layout that is best for those is for all.
    setup = peers.best_setup(settings, case.images, lambda setup: _peer_turn(case, setup, few))
    check = agree(
        f"losses of 2 models over {few.shape[1]} steps",
        trained.losses[:2, : few.shape[1]].ravel(),
        np.ravel(_peer_train(case, setup, few, keep_losses=True)),
        _TOLERANCE,
    )
    ours, theirs = turn_about(lambda: ours_of()[1], _peer_turn(case, setup, schedules), settings)
    return Outcome(ours, theirs, check, str(setup))


def retained_schedules(case: Case, models: int, epochs: int) -> np.ndarray:
    """int32 `[models, T, B]` ids; the forget set of each model, 1% at random, is absent."""
    rows = []
    for seed in range(models):
        forget = unroll.data.random_ids(
            case.data, fraction=max(_FORGOTTEN, 1 / len(case.data)), seed=seed
        )
        retained = np.setdiff1d(np.arange(len(case.data)), forget)
        rows.append(unroll.data.make_schedule(seed, retained, case.batch, epochs))
    return np.stack(rows)


def _train(case: Case, schedules: np.ndarray):
    def train():
        begin = time.perf_counter()
        seeds = tuple(range(len(schedules)))
        trained = unroll.train_ensemble(case.spec, case.data, schedules, seeds=seeds)
        return trained, time.perf_counter() - begin

    return train


def _peer_train(
    case: Case, setup: peers.Setup, schedules: np.ndarray, keep_losses: bool = False
) -> list[list[float]]:
    """One model after the other."""
    trainers = [
        peers.Trainer(setup, case.peer(seed), case.data.inputs, case.data.labels, case.rate)
        for seed in range(len(schedules))
    ]
    return [
        trainer.steps(trainer.batches(schedule), keep_losses)
        for trainer, schedule in zip(trainers, schedules, strict=True)
    ]


def _peer_turn(case: Case, setup: peers.Setup, schedules: np.ndarray):
    """A turn begins with networks, data and batches in place: only the steps are counted."""
    first = peers.Trainer(setup, case.peer(), case.data.inputs, case.data.labels, case.rate)
    batches = [first.batches(schedule) for schedule in schedules]
    weights = [case.peer(seed).state_dict() for seed in range(len(schedules))]

    def turn() -> float:
        begin = time.perf_counter()
        for start, model_batches in zip(weights, batches, strict=True):
            first.net.load_state_dict(start)
            first.steps(model_batches)
        return time.perf_counter() - begin

    return turn
