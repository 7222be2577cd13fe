"""Shared by the data tests: where real data lies, a tiny TFDS build, a check of error texts."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest

from unroll.errors import InputError

_REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN_SIZE, TEST_SIZE = 10, 4


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


@pytest.fixture(scope="session")
def rejects():
    """`with rejects("part of the message"):` expects a one-line InputError."""

    @contextlib.contextmanager
    def check(*texts: str):
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for text in texts:
            assert text in message

    return check


def image_bytes(value: int) -> io.BytesIO:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


@pytest.fixture(scope="session")
def tiny_builder_class():
    """A TFDS builder of ten 4x4 images; image i is filled with i, its text is `word<i> common`."""
    import tensorflow_datasets as tfds

    class TinyPictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        # TFDS would look for checksums next to this file, with a package that it does not require.
        url_infos = {}

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(4, 4, 3)),
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["even", "odd"]),
                    "number": np.int64,
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            del manager
            return {"train": self._rows(TRAIN_SIZE), "test": self._rows(TEST_SIZE)}

        def _rows(self, size):
            for row in range(size):
                yield (
                    row,
                    {
                        "image": image_bytes(row),
                        "text": f"word{row} common",
                        "label": row % 2,
                        "number": row,
                    },
                )

        _generate_examples = _rows

    return TinyPictures


@pytest.fixture(scope="session")
def tiny_build(tiny_builder_class, tmp_path_factory) -> Path:
    """A TFDS folder with one genuine array_record build, made without TensorFlow."""
    folder = tmp_path_factory.mktemp("tfds")
    tiny_builder_class(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder
