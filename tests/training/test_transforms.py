"""Augmentation, and a stopwatch that leaves compilation out."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from unroll.training.timing import Stopwatch
from unroll.training.transforms import CropAndFlip


def test_crops_are_shifted_copies():
    image = np.arange(1, 37, dtype=np.float32).reshape(6, 6, 1)
    keys = jax.random.split(jax.random.key(0), 64)
    results = CropAndFlip(padding=2)(jnp.asarray(np.stack([image] * 64)), keys)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    candidates = {
        crop.tobytes()
        for row in range(5)
        for column in range(5)
        for window in [padded[row : row + 6, column : column + 6]]
        for crop in (np.ascontiguousarray(window), np.ascontiguousarray(window[:, ::-1]))
    }
    found = {np.asarray(result).tobytes() for result in results}
    assert found <= candidates and len(found) > 20


def test_without_padding_and_flip_nothing_happens():
    images = jnp.ones((2, 4, 4, 3)).at[0, 0, 0].set(5)
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(CropAndFlip(padding=0, flip=False)(images, keys), images)


def test_stopwatch_leaves_compilation_out():
    watch = Stopwatch()
    time.sleep(0.05)

    @jax.jit
    def deep(x):
        for _ in range(200):
            x = jnp.sin(x) @ x
        return x

    begin = time.perf_counter()
    deep(jnp.eye(3)).block_until_ready()
    wall = time.perf_counter() - begin
    assert watch.compilation_seconds() > 0.5 * wall
    assert 0.05 <= watch.seconds() < 0.05 + 0.5 * wall + 0.05
