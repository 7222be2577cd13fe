"""Data on the host: data sets, schedules, forget sets and corruptions, all plain numpy.

An example is known by its row number in the training set. A schedule lists row numbers, a forget
set is a sorted array of them, and nothing here reorders rows once a data set exists. This package
imports neither JAX nor, until a loader needs it, TensorFlow Datasets.
"""

from unroll.data.arrays import from_arrays, load_npz
from unroll.data.corruption import (
    add_duplicates,
    apply_trigger,
    mislabel,
    poison_trigger,
    swap_classes,
)
from unroll.data.dataset import Dataset
from unroll.data.digits import load_digits
from unroll.data.forget import (
    check_forget_ids,
    check_partition,
    class_ids,
    corrupted_ids,
    explicit_ids,
    group_ids,
    random_ids,
    retain_ids,
    select,
    with_duplicates,
)
from unroll.data.image_folder import load_image_folder
from unroll.data.registry import LOADERS, load
from unroll.data.schedule import (
    first_use,
    make_schedule,
    steps_per_epoch,
    uses,
    validate_schedule,
)
from unroll.data.statistics import PUBLISHED_STATISTICS, published_statistics
from unroll.data.synthetic import gaussian_blobs, random_images
from unroll.data.text import (
    HashedVocabulary,
    Vocabulary,
    build_vocabulary,
    encode,
    load_text,
    tokenize,
)
from unroll.data.tfds_source import load_tfds

__all__ = [
    "LOADERS",
    "PUBLISHED_STATISTICS",
    "Dataset",
    "HashedVocabulary",
    "Vocabulary",
    "add_duplicates",
    "apply_trigger",
    "build_vocabulary",
    "check_forget_ids",
    "check_partition",
    "class_ids",
    "corrupted_ids",
    "encode",
    "explicit_ids",
    "first_use",
    "from_arrays",
    "gaussian_blobs",
    "group_ids",
    "load",
    "load_digits",
    "load_image_folder",
    "load_npz",
    "load_text",
    "load_tfds",
    "make_schedule",
    "mislabel",
    "poison_trigger",
    "published_statistics",
    "random_ids",
    "random_images",
    "retain_ids",
    "select",
    "steps_per_epoch",
    "swap_classes",
    "tokenize",
    "uses",
    "validate_schedule",
    "with_duplicates",
]
