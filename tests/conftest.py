"""Shared settings: four virtual CPU devices, reused random keys are errors."""

import os
import sys
from pathlib import Path

# Code is compiled for one small call each: without LLVM's optimisation the suite takes two thirds
# of the time. Flags of the caller come last and win; scripts that tests start compile as usual.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402

import unroll  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)
_MOST_BYTES = 3 * 2**30
_REPOSITORY = Path(__file__).resolve().parents[1]
# Configs import their defaults from beside the scripts.
sys.path.insert(0, str(_REPOSITORY / "experiments"))


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Compiled programs pile up over a hundred modules; recompiling some beats swapping."""
    yield
    if psutil.Process().memory_info().rss > _MOST_BYTES:
        jax.clear_caches()


@pytest.fixture(scope="session")
def blobs():
    """A small classification problem: (train, test), 120 and 60 points in 6 dimensions."""
    return unroll.data.load("blobs", num_train=120, num_test=60, num_features=6, num_classes=3)


@pytest.fixture(scope="session")
def images():
    """Small float images: (train, test), 64 and 32 of 8x8x3."""
    both = unroll.data.load("random_images", num_train=64, num_test=32, size=8, num_classes=3)
    return tuple(
        unroll.data.Dataset(data.name, data.inputs / np.float32(128) - 1, data.labels, 3)
        for data in both
    )


@pytest.fixture(scope="session")
def mlp_spec():
    return unroll.TrainSpec(unroll.models.build("mlp", num_classes=3, hidden=(16,)))


@pytest.fixture(scope="session")
def recorded_run(blobs, mlp_spec):
    """A recorded run of 24 steps with a snapshot every 5."""
    train, _ = blobs
    schedule = unroll.data.make_schedule(0, len(train), batch_size=16, epochs=3)
    return unroll.train(mlp_spec, train, schedule, seed=0, record=unroll.Record(every=5))


@pytest.fixture(scope="session")
def problem(recorded_run):
    return unroll.Problem(recorded_run, np.array([3, 17, 40]))


def real_data_dir(dataset: str, version: str) -> Path:
    """Returns the TFDS folder that holds the real data set, or skips the test and says why."""
    candidates = [_REPOSITORY.parent / "shared" / "data" / "tfds"]
    if os.environ.get("TFDS_DATA_DIR"):
        candidates.insert(0, Path(os.environ["TFDS_DATA_DIR"]).expanduser())
    for folder in candidates:
        if (folder / dataset / version / "dataset_info.json").is_file():
            return folder
    pytest.skip(
        "real data not found: set TFDS_DATA_DIR or provide ../shared/data/tfds "
        f"({dataset} {version} missing)"
    )


@pytest.fixture(name="real_data_dir", scope="session")
def real_data_dir_fixture():
    return real_data_dir
