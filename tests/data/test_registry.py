import ast
from pathlib import Path

import numpy as np
import pytest

import unroll.data
from unroll.data import load
from unroll.errors import InputError

# Options that make each loader work on data made here; "tfds" stands for the fixture's folder.
CASES = [
    ("digits", {}),
    ("blobs", {"num_features": 3}),
    ("random_images", {"size": 4}),
    ("npz", {"path": "file.npz"}),
    ("tfds", {"tfds_name": "tiny_pictures", "data_dir": "tfds"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_loader_takes_the_first_rows(name, options, tiny_build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tfds").symlink_to(tiny_build)
    np.savez(
        "file.npz",
        **{f"{part}_inputs": np.eye(9) for part in ("train", "test")},
        **{f"{part}_labels": np.arange(9) for part in ("train", "test")},
    )
    whole, _ = load(name, **options)
    train, test = load(name, **options, num_train=5, num_test=2)
    assert len(train) == 5 and len(test) == 2
    assert train.name == test.name == whole.name.partition("[")[0] + "[5/2]"
    if name not in ("blobs", "random_images"):  # these draw anew for another size
        np.testing.assert_array_equal(train.inputs, whole.inputs[:5])
    only_train, rest = load(name, **options, num_train=3)
    assert len(only_train) == 3 and len(rest) > 2


@pytest.mark.parametrize(
    ("name", "options", "texts"),
    [
        ("imagenet", {}, ["'imagenet'", "digits, blobs", "imdb_reviews"]),
        ("digits", {"size": 3}, ["'size'", "test_fraction, seed"]),
        ("digits", {"num_train": 5000}, ["num_train", "1438"]),
        ("digits", {"num_test": 0}, ["num_test"]),
        ("npz", {}, ["'path' is required"]),
        ("cifar10", {"tfds_name": "mnist"}, ["'tfds_name'"]),
        ("cifar10", {"data_dir": "nowhere"}, ["nowhere/cifar10", "download_and_prepare()"]),
        ("cifar100", {"data_dir": "nowhere"}, ["nowhere/cifar100"]),
        ("mnist", {"data_dir": "nowhere"}, ["nowhere/mnist"]),
        ("fashion_mnist", {"data_dir": "nowhere"}, ["nowhere/fashion_mnist"]),
        ("imdb_reviews", {"data_dir": "nowhere"}, ["nowhere/imdb_reviews/plain_text"]),
        ("tfds", {}, ["'tfds_name' is required"]),
        ("image_folder", {"root": "nowhere"}, ["nowhere/train"]),
    ],
)
def test_bad_requests_are_rejected(name, options, texts, one_line):
    with pytest.raises(InputError, match=one_line(*texts)):
        load(name, **options)


def imported_modules(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", sorted(Path(unroll.data.__file__).parent.glob("*.py")))
def test_data_is_host_side_and_heavy_imports_are_lazy(path):
    tree = ast.parse(path.read_text())
    assert not {"jax", "flax", "optax"} & set(imported_modules(ast.walk(tree)))
    heavy = {"tensorflow_datasets", "tensorflow", "sklearn", "PIL"}
    assert not heavy & set(imported_modules(tree.body))


def test_exports_exist():
    assert all(hasattr(unroll.data, name) for name in unroll.data.__all__)
