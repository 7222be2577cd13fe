"""Made-up data that is always there: for tests, for quick starts, for exact checks."""

from __future__ import annotations

import numpy as np

from unroll.data.dataset import Dataset, pair
from unroll.data.ids import make_generator
from unroll.errors import InputError

_PATTERN_SIZE = 4


def gaussian_blobs(
    num_train: int = 500,
    num_test: int = 200,
    num_features: int = 10,
    num_classes: int = 3,
    seed: int = 0,
    noise: float = 1.0,
) -> tuple[Dataset, Dataset]:
    """Draws one Gaussian cloud per class around a random centre of length 3.

    Args:
      num_train: number of training examples; the classes are balanced.
      num_test: number of test examples.
      num_features: dimension.
      num_classes: number of clouds.
      seed: random seed.
      noise: standard deviation of a cloud in every direction; 0.5 is easy, 2 is hard.

    Returns:
      (train, test) with float32 inputs [N, num_features].

    Raises:
      InputError: a count is below 1 or the noise is negative.
    """
    _check_counts(num_train=num_train, num_test=num_test, num_features=num_features)
    _check_counts(num_classes=num_classes)
    if not noise >= 0:
        raise InputError(f"noise: must be >= 0, got {noise}")
    generator = make_generator(seed, "gaussian_blobs")
    centres = generator.normal(size=[num_classes, num_features])
    centres *= 3.0 / np.linalg.norm(centres, axis=1, keepdims=True)

    def draw(size: int) -> Dataset:
        labels = _balanced_labels(generator, size, num_classes)
        inputs = centres[labels] + noise * generator.normal(size=[size, num_features])
        return Dataset("blobs", inputs, labels, num_classes)

    return pair("blobs", draw(num_train), draw(num_test))


def random_images(
    num_train: int = 500,
    num_test: int = 200,
    size: int = 8,
    channels: int = 3,
    num_classes: int = 4,
    seed: int = 0,
) -> tuple[Dataset, Dataset]:
    """Draws noisy images, each class around its own coarse pattern, so that a small CNN can learn.

    Args:
      num_train: number of training images; the classes are balanced.
      num_test: number of test images.
      size: height and width in pixels.
      channels: number of channels.
      num_classes: number of patterns.
      seed: random seed.

    Returns:
      (train, test) with uint8 inputs [N, size, size, channels], mean 0.5 and std 0.25.

    Raises:
      InputError: a count is below 1.
    """
    _check_counts(num_train=num_train, num_test=num_test, size=size, channels=channels)
    _check_counts(num_classes=num_classes)
    generator = make_generator(seed, "random_images")
    coarse = generator.uniform(64, 192, [num_classes, _PATTERN_SIZE, _PATTERN_SIZE, channels])
    nearest = np.arange(size) * _PATTERN_SIZE // size
    patterns = coarse[:, nearest][:, :, nearest]

    def draw(count: int) -> Dataset:
        labels = _balanced_labels(generator, count, num_classes)
        pixels = patterns[labels] + generator.normal(scale=40.0, size=[count, size, size, channels])
        return Dataset(
            name="random_images",
            inputs=np.clip(np.rint(pixels), 0, 255).astype(np.uint8),
            labels=labels,
            num_classes=num_classes,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )

    return pair("random_images", draw(num_train), draw(num_test))


def _balanced_labels(generator: np.random.Generator, size: int, num_classes: int) -> np.ndarray:
    return generator.permutation(np.arange(size) % num_classes)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name}: expected an integer >= 1, got {count!r}")
