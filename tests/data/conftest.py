"""Shared by the data tests: a tiny TFDS build, a check of error texts."""

import io
import re
from pathlib import Path

import numpy as np
import pytest

TRAIN_SIZE, TEST_SIZE = 10, 4


@pytest.fixture(scope="session")
def one_line():
    """`pytest.raises(InputError, match=one_line("a", "b"))`: one line that holds all the texts."""
    return lambda *texts: (
        r"\A" + "".join(f"(?=.*{re.escape(text)})" for text in texts) + r"[^\n]*\Z"
    )


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
