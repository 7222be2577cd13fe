"""SGD steps, gather of the batch included: the compiled loop of a run against a PyTorch loop."""

import time

import jax
import jax.numpy as jnp
import peers
from cases import Case, make_case
from timing import agree, turn_about
from work import Outcome, Settings

from unroll.training import loop

_CHECKED_STEPS = 3
# float32 sums in another order; deep networks amplify it within a few steps.
_TOLERANCE = 1e-3


def sgd_step(settings: Settings, *, case: str, steps: int, **arguments) -> Outcome:
    """Seconds per step over `steps` steps."""
    case = make_case(settings, case, **arguments)
    steps = settings.steps(steps)
    setup = peers.best_setup(settings, case.images, lambda setup: _peer_turn(case, setup, steps))
    losses = our_losses(case, steps)
    check = agree(
        f"losses of {_CHECKED_STEPS} steps",
        losses[:_CHECKED_STEPS],
        _peer_losses(case, setup, _CHECKED_STEPS),
        _TOLERANCE,
    )
    ours, theirs = turn_about(lambda: _turn(case, steps), _peer_turn(case, setup, steps), settings)
    return Outcome(ours, theirs, check, str(setup))


def our_losses(case: Case, steps: int) -> jax.Array:
    """Training losses of a run of the case."""
    return _advance(case, steps)[0]


def _turn(case: Case, steps: int) -> float:
    return _advance(case, steps)[1] / steps


def _advance(case: Case, steps: int) -> tuple[jax.Array, float]:
    """Losses and seconds of a run from the initial state."""
    state, losses, key = case.initial(), jnp.zeros(steps), jax.random.key(0)
    examples, weights = loop.device_examples(case.data), jnp.ones(len(case.data))
    schedule = jnp.asarray(case.schedule(steps))
    jax.block_until_ready((state, losses, examples, weights, schedule))
    begin = time.perf_counter()
    state, losses = loop.advance(
        case.spec, state, losses, examples, weights, key, schedule, 0, steps
    )
    jax.block_until_ready((state, losses))
    return losses, time.perf_counter() - begin


def _trainer(case: Case, setup: peers.Setup) -> peers.Trainer:
    return peers.Trainer(setup, case.peer(), case.data.inputs, case.data.labels, case.rate)


def _peer_losses(case: Case, setup: peers.Setup, steps: int) -> list[float]:
    trainer = _trainer(case, setup)
    return trainer.steps(trainer.batches(case.schedule(steps)), keep_losses=True)


def _peer_turn(case: Case, setup: peers.Setup, steps: int):
    trainer = _trainer(case, setup)
    batches = trainer.batches(case.schedule(steps))
    return lambda: trainer.seconds_per_step(batches)
