"""What happens to a gathered batch on the device: normalisation and keyed augmentation.

Augmentation draws from one key per example, `fold_in(fold_in(key, step), id)`. Removing an example
from the run therefore shifts nobody else's crops and flips, which is what makes the twin a twin.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Maps uint8 images to `(x/255 - mean) / std`, per channel.

    The constants are part of the specification and not computed from the training set: a mean over
    the training set would carry the forgotten images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """`[B, H, W, C]` uint8 to float32."""
        scaled = images.astype(jnp.float32) / 255.0
        return (scaled - jnp.asarray(self.mean)) / jnp.asarray(self.std)


@dataclasses.dataclass(frozen=True)
class CropAndFlip:
    """Random crop after zero padding by `padding` pixels, and a horizontal flip with p = 1/2."""

    padding: int = 4
    flip: bool = True

    def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """`[B, H, W, C]` float images and `[B]` keys to images of the same shape."""
        return jax.vmap(self._one)(images, keys)

    def _one(self, image: jax.Array, key: jax.Array) -> jax.Array:
        crop_key, flip_key = jax.random.split(key)
        if self.padding:
            pad = self.padding
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        if self.flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        return image
