"""TensorBoard scalars, where the extra is installed."""

import importlib.util

import pytest

from unroll.evaluation.records import Record
from unroll.report.tensorboard import write_scalars


def make_record(**change):
    base = dict(
        experiment="e", dataset="d", model="m", forget="f", forget_size=1, method="taylor",
        hyperparameters={"order": 2}, train_seed=0, method_seed=0, metric="tow", split=None,
        value=0.5,
    )  # fmt: skip
    return Record(**{**base, **change})


RECORDS = [
    make_record(),
    make_record(value=None, note="diverged"),
    make_record(metric="training_loss", method="original", at=10.0),
]


def test_writes_events(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")
    assert write_scalars(RECORDS, tmp_path / "tensorboard")
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    # tensorboardX replaces brackets in tags.
    assert b"tow/taylor_order_2" in content and b"training_loss/original" in content


def test_does_nothing_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not write_scalars(RECORDS, tmp_path / "tensorboard")
    assert not (tmp_path / "tensorboard").exists()
