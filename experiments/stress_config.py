"""What the stress tests of the server share: how often it is killed, and what is damaged."""

import ml_collections
from serving_config import serving_config
from stress_damages import KINDS, STORE


def stress_config(experiment: str, variant: str) -> ml_collections.ConfigDict:
    """A served model, kills, corrupted lines and damages; requests and keys are made."""
    config = serving_config(experiment, variant)
    smoke = variant == "smoke"
    config.kills = 2 if smoke else 20
    # Seconds from the chosen record to the kill, at most; a training takes about as long.
    config.kill_delay = 0.2
    config.corrupted = 60 if smoke else 200
    config.damages = ("journal: a changed bit", "two servers at once", STORE[0]) if smoke else KINDS
    # Of the damages that are done at several places.
    config.repeats = 1 if smoke else 3
    # The stress test trains from scratch itself.
    config.check_scratch = False
    return config
