"""One process of a job that trains an ensemble; started by test_distributed.py.

python distributed_job.py COORDINATOR PROCESSES PROCESS_ID SETTINGS

SETTINGS is JSON: `modes`, `store` and `out` (paths or null), `pause` (seconds to wait after each
stretch), `diverge` (seed of a model that shall, or null). The results go to `out`, one npz file for
each process and mode.
"""

import json
import sys
import time

import jax
import numpy as np

import unroll
from unroll.training import devices

SEEDS = (3, 1, 4, 15, 9)
STEPS = 400


def train(mode: str, store=None, pause=0.0, diverge=None, mesh=None):
    """Five models with schedules and weights of their own; also the first report of progress."""
    data, _ = unroll.data.load("blobs", num_train=120, num_test=60, num_features=6, num_classes=3)
    spec = unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))
    rng = np.random.default_rng(0)
    schedules = rng.integers(0, len(data), (len(SEEDS), STEPS, 16)).astype(np.int32)
    weights = rng.integers(0, 2, (len(SEEDS), len(data))).astype(np.float32)
    if diverge is not None:
        weights[SEEDS.index(diverge)] *= 1e30
    reports = []

    def progress(done, total):
        reports.append(done)
        time.sleep(pause)

    ensemble = unroll.train_ensemble(
        spec,
        data,
        schedules,
        seeds=SEEDS,
        weights=weights,
        mode=mode,
        mesh=mesh,
        store=None if store is None else unroll.Store(store, progress_seconds=0.0),
        progress=progress,
    )
    return ensemble, (reports or [len(SEEDS) * STEPS])[0]


def main(coordinator: str, processes: str, process: str, text: str) -> None:
    settings = json.loads(text)
    modes, out = settings.pop("modes"), settings.pop("out")
    devices.join(coordinator, int(processes), int(process))
    assert jax.process_count() == int(processes)
    for mode in modes:
        try:
            ensemble, first = train(mode, **settings)
        except (devices.ProcessLost, unroll.DivergenceError) as error:
            devices.leave(error)
        leaves = jax.tree.leaves(ensemble.states)
        np.savez(f"{out}-{mode}-{process}.npz", first, ensemble.losses, *leaves)


if __name__ == "__main__":
    main(*sys.argv[1:])
