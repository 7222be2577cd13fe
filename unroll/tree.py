"""Parameter trees as vectors: distances, finiteness, and a hash of the content.

Distances are taken in float64 on the host: a verification error is often six orders of magnitude
below the norm of the weights, where a float32 sum over millions of entries is mostly rounding.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np

from unroll.errors import InputError
from unroll.types import PyTree


def to_host(tree: PyTree) -> PyTree:
    """Copies every leaf into its own numpy array; typed keys stay keys, with a buffer of their own.

    So whatever becomes of the given tree, also a program that is donated its buffers, the copy
    stays.
    """
    return jax.tree.map(_leaf_to_host, tree)


def _leaf_to_host(leaf):
    if is_key(leaf):
        bits = np.array(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    return np.array(leaf)


def is_key(leaf) -> bool:
    """Whether a leaf is an array of typed keys, which numpy cannot hold."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def flatten(tree: PyTree) -> np.ndarray:
    """All entries of a tree of real arrays as one float64 vector, in the order of the leaves."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return np.zeros(0)
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def squared_distance(first: PyTree, second: PyTree) -> float:
    """Sum over all leaves of the squared differences, in float64.

    Raises:
      InputError: if the trees differ in structure or shapes.
    """
    if jax.tree.structure(first) != jax.tree.structure(second):
        raise InputError(
            "the two models have different parameter trees; compare models of one specification"
        )
    total = 0.0
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if np.shape(one) != np.shape(other):
            raise InputError(
                f"parameter shapes differ: {np.shape(one)} and {np.shape(other)}; "
                "compare models of one specification"
            )
        difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
        total += float(np.vdot(difference, difference))
    return total


def distance(first: PyTree, second: PyTree) -> float:
    """Euclidean distance between two trees, in float64."""
    return float(np.sqrt(squared_distance(first, second)))


def norm(tree: PyTree) -> float:
    """Euclidean norm of a tree, in float64."""
    return float(np.linalg.norm(flatten(tree)))


def is_floating(leaf) -> bool:
    """Whether a leaf holds real or complex numbers; numpy alone does not know bfloat16."""
    return jax.dtypes.issubdtype(jax.dtypes.result_type(leaf), np.inexact)


def is_finite(tree: PyTree) -> bool:
    """Whether no floating-point entry is NaN or infinite."""
    return all(
        bool(np.isfinite(np.asarray(leaf)).all())
        for leaf in jax.tree.leaves(tree)
        if is_floating(leaf)
    )


def content_hash(tree: PyTree) -> str:
    """SHA-256 over paths, dtypes, shapes and bytes of all leaves: equal exactly for equal bits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        digest.update(f"{jax.tree_util.keystr(path)}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def same_bits(first: PyTree, second: PyTree) -> bool:
    """Whether two trees hold the same structure and exactly the same bits."""
    return content_hash(first) == content_hash(second)
