import numpy as np
import pytest
from PIL import Image

from unroll.data import load_image_folder, published_statistics
from unroll.errors import InputError


def write_image(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixel = value if mode == "L" else (value,) * 3
    Image.new(mode, size, pixel).save(path)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pets"
    for value, name in enumerate(["dog/b.png", "dog/a.png", "cat/z.png", "cat/y.png", "cat/x.png"]):
        write_image(folder / "train" / name, value)
    write_image(folder / "test" / "dog" / "t.png", 9, mode="L")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    return folder


def test_rows_go_round_the_classes_in_sorted_order(root):
    train, test = load_image_folder(root)
    assert train.name == "pets[5/1]" and train.class_names == ("cat", "dog")
    assert train.inputs.shape == (5, 4, 6, 3) and train.inputs.dtype == np.uint8
    # x, a, y, b, z: first files of cat and dog, then the second ones, then the third.
    assert train.inputs[:, 0, 0, 0].tolist() == [4, 1, 3, 0, 2]
    assert train.labels.tolist() == [0, 1, 0, 1, 0]
    assert test.labels.tolist() == [1] and (test.inputs == 9).all()
    assert train.mean is None


def test_all_suffixes_and_a_val_folder(root):
    (root / "test").rename(root / "val")
    write_image(root / "train" / "dog" / "c.JPEG", 50)
    write_image(root / "train" / "dog" / "d.jpg", 60)
    train, test = load_image_folder(root, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert len(train) == 7 and len(test) == 1
    assert train.std == (0.2, 0.2, 0.2)


def test_different_sizes_need_an_image_size(root, one_line):
    write_image(root / "train" / "cat" / "zz.png", 7, size=(8, 8))
    with pytest.raises(InputError, match=one_line("zz.png", "8x8", "6x4", "image_size")):
        load_image_folder(root)
    train, test = load_image_folder(root, image_size=5)
    assert train.example_shape == test.example_shape == (5, 5, 3)
    assert train.inputs[-1].max() == 7


def break_a_file(root):
    (root / "train" / "cat" / "x.png").write_bytes(b"not a picture")


def remove_training_images(root):
    for path in (root / "train").glob("*/*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "texts"),
    [
        (break_a_file, ["x.png", "cannot be read"]),
        (remove_training_images, ["train", "no images"]),
        (lambda root: (root / "test").rename(root / "other"), ["test or val"]),
        (lambda root: (root / "train").rename(root / "other"), ["train/<class>"]),
        (lambda root: write_image(root / "test" / "cow" / "c.png", 1), ["'cow'", "not in train"]),
    ],
)
def test_broken_folders_are_rejected(root, damage, texts, one_line):
    damage(root)
    with pytest.raises(InputError, match=one_line(*texts)):
        load_image_folder(root)


@pytest.mark.parametrize("image_size", [0, "big", 2.5])
def test_bad_image_size(root, image_size, one_line):
    with pytest.raises(InputError, match=one_line("image_size")):
        load_image_folder(root, image_size=image_size)


@pytest.fixture
def tiny_imagenet(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    for value, label in enumerate(["n02", "n01"]):
        for rank in range(2):
            path = folder / "train" / label / "images" / f"{label}_{rank}.JPEG"
            write_image(path, 100 * value + 10 * rank)
        (folder / "train" / label / f"{label}_boxes.txt").write_text("")
    for rank in range(3):
        write_image(folder / "val" / "images" / f"val_{rank}.JPEG", 200 + rank)
    write_image(folder / "test" / "images" / "test_0.JPEG", 1)  # without labels, so not used
    (folder / "wnids.txt").write_text("n02\nn01\n")
    lines = [
        f"val_{rank}.JPEG\tn0{label}\t0\t0\t9\t9\n" for rank, label in [(2, 1), (0, 2), (1, 2)]
    ]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def test_tiny_imagenet_layout(tiny_imagenet):
    train, test = load_image_folder(tiny_imagenet)
    assert train.name == "tiny-imagenet-200[4/3]"
    assert train.class_names == ("n01", "n02")
    assert train.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(train.inputs[:, 0, 0, 0], [100, 0, 110, 10], atol=2)
    assert test.labels.tolist() == [1, 1, 0]
    np.testing.assert_allclose(test.inputs[:, 0, 0, 0], [200, 201, 202], atol=2)
    assert (train.mean, train.std) == published_statistics("tiny_imagenet")


def test_tiny_imagenet_with_an_unknown_class(tiny_imagenet, one_line):
    with (tiny_imagenet / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_0.JPEG\tn09\t0\t0\t9\t9\n")
    with pytest.raises(InputError, match=one_line("'n09'")):
        load_image_folder(tiny_imagenet)
