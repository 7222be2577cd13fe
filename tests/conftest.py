"""Shared settings: four virtual CPU devices, reused random keys are errors."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import unroll  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)


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
def problem(recorded_run, blobs):
    return unroll.Problem(recorded_run, np.array([3, 17, 40]), blobs[1])
