"""The 8x8 digits that come inside scikit-learn: real images with nothing to download."""

from __future__ import annotations

import numpy as np

from unroll.data.dataset import Dataset, pair
from unroll.data.ids import make_generator
from unroll.errors import InputError


def load_digits(test_fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Loads 1,797 digits as float32 [N, 8, 8, 1] in [0, 1], split within each class.

    Args:
      test_fraction: share of every class that goes to the test set.
      seed: chooses which examples those are; the rows keep their original order.

    Returns:
      (train, test).

    Raises:
      InputError: the fraction leaves a class without train or test examples.

    >>> train, test = load_digits()
    >>> train.name, train.inputs.shape
    ('digits[1438/359]', (1438, 8, 8, 1))
    """
    from sklearn import datasets

    if not 0.0 < test_fraction < 1.0:
        raise InputError(f"test_fraction: must be between 0 and 1, got {test_fraction}")
    bunch = datasets.load_digits()
    is_test = stratified_mask(bunch.target, test_fraction, seed)
    everything = Dataset(
        name="digits",
        inputs=bunch.images[..., np.newaxis] / 16.0,  # the pixels count from 0 to 16
        labels=bunch.target,
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )
    train = everything.take(np.flatnonzero(~is_test))
    test = everything.take(np.flatnonzero(is_test))
    return pair("digits", train, test)


def stratified_mask(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Marks the same share of every class, chosen at random.

    Args:
      labels: int [N].
      fraction: the share to mark.
      seed: random seed.

    Returns:
      bool [N].

    Raises:
      InputError: some class would be marked in full or not at all.
    """
    generator = make_generator(seed, "stratified_mask")
    mask = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise InputError(
                f"fraction: {fraction} of the {len(members)} examples of class {label} is {count}; "
                "both parts need an example"
            )
        mask[generator.permutation(members)[:count]] = True
    return mask
