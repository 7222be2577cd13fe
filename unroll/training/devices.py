"""Meshes over local devices. Models of an ensemble are laid out along the axis `models`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

MODELS = "models"


def model_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over the given devices, or all local ones.

    Axes are `AxisType.Auto`: under the explicit axes that `jax.make_mesh` makes by default,
    shard_map refuses unsharded arrays and integer-label cross-entropy fails under vmap.
    """
    devices = list(devices) if devices is not None else jax.local_devices()
    return Mesh(np.array(devices), (MODELS,), axis_types=(AxisType.Auto,))
