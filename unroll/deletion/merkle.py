"""A Merkle commitment of a training set: presence and absence of an id in a short proof.

A leaf is a pair (salted hash of the id, salted hash of the example); the leaves are sorted by the
first. The tree over them is that of RFC 6962, section 2.1, where leaves and inner nodes are hashed
with different first bytes, so that neither passes for the other:

    leaf  = SHA-256(0x00 | key | value)
    node  = SHA-256(0x01 | left | right)
    root  = SHA-256(0x02 | number of leaves | top)

The position of a leaf follows from its path and the number of leaves. An id is present if its leaf
has a path to the root. It is absent if two neighbouring leaves lie on either side of it, or it lies
before the first or behind the last.

What a proof does not show. The committer sorted the leaves: who does not trust it rebuilds the tree
from the data (`commit` is deterministic) and compares roots. An id is tied to its key by the salt
only, so a check of "this id" needs the salt. And an example that is absent under its id may be
there a second time under another one (see `Dataset.duplicates`).

Design: one hash per id, an HMAC under a secret salt, which is also what the ledger lists; so the
absence of a logged request can be shown to somebody who learns neither ids nor examples. Rejected:
a sparse tree over all 2^256 keys, which needs no sorting but paths of 256 hashes.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from unroll.data.dataset import Dataset
from unroll.data.ids import IdsLike, as_ids
from unroll.errors import InputError

_LEAF, _NODE, _ROOT = b"\x00", b"\x01", b"\x02"
_EMPTY = hashlib.sha256(b"").digest()
_HASH = re.compile("[0-9a-f]{64}")
_LEAST_SALT = 16


def salted_hash(salt: bytes, purpose: str, content: bytes) -> str:
    """HMAC-SHA256 (RFC 2104) of a content under a secret salt, hex; purposes never collide.

    Raises:
      InputError: if the salt has fewer than 16 bytes, which could be guessed.
    """
    if not isinstance(salt, bytes) or len(salt) < _LEAST_SALT:
        raise InputError(f"the salt must be {_LEAST_SALT} bytes or more; make one with create_keys")
    message = purpose.encode() + b"\x00" + content
    return hmac.new(salt, message, hashlib.sha256).hexdigest()


def salted_id(salt: bytes, example: int) -> str:
    """What stands for an id in proofs and in the ledger."""
    return salted_hash(salt, "id", int(example).to_bytes(8, "big"))


def salted_ids(salt: bytes, ids: IdsLike) -> tuple[str, ...]:
    """The ids' hashes, sorted, so that their order tells nothing."""
    return tuple(sorted(salted_id(salt, example) for example in as_ids(ids)))


def example_hash(dataset: Dataset, example: int, salt: bytes) -> str:
    """Salted hash of all that training sees of one example: input, label, group."""
    parts = []
    for array in (dataset.inputs, dataset.labels, dataset.groups):
        if array is None:
            parts.append(b"none;")
            continue
        row = np.ascontiguousarray(array[example])
        parts += [f"{row.dtype.str}{row.shape};".encode(), row.tobytes()]
    return salted_hash(salt, "example", b"".join(parts))


@dataclasses.dataclass(frozen=True, eq=False)
class Commitment:
    """A tree over the examples of a training set.

    Attributes:
      keys: salted ids, ascending.
      values: salted hash of each one's example.
      salt: what they were made with; a secret.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    salt: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def levels(self) -> list[list[bytes]]:
        """Hashes from the leaves up to the top."""
        return tree_levels(
            [
                bytes.fromhex(key) + bytes.fromhex(value)
                for key, value in zip(self.keys, self.values, strict=True)
            ]
        )

    @functools.cached_property
    def root(self) -> str:
        """What is published, hex."""
        return _root(len(self.keys), self.levels[-1][0])

    def leaf(self, index: int) -> Leaf:
        """A leaf with its path."""
        path = tuple(each.hex() for each in _path(self.levels, index))
        return Leaf(index, self.keys[index], self.values[index], path)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of the tree.

    Attributes:
      index: position among the leaves.
      key: salted id.
      value: salted hash of the example.
      path: hashes beside the way from the leaf to the top.
    """

    index: int
    key: str
    value: str
    path: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Proof:
    """That an id is present, or absent.

    Attributes:
      kind: `presence` or `absence`.
      key: salted id that it speaks of; compare it with `salted_id`, or with the ledger's requests.
      size: number of leaves.
      leaves: the leaf itself; or the one or two (none in an empty tree) around its place.
    """

    kind: str
    key: str
    size: int
    leaves: tuple[Leaf, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Any) -> Proof:
        """The inverse of `to_json`.

        Raises:
          InputError: if it is no proof.
        """
        try:
            leaves = tuple(
                Leaf(**{**leaf, "path": tuple(leaf["path"])}) for leaf in value["leaves"]
            )
            return Proof(**{**value, "leaves": leaves})
        except (TypeError, KeyError) as error:
            raise InputError(f"this is no proof ({error}); give Proof.to_json()") from None


def commit(dataset: Dataset, ids: IdsLike, salt: bytes) -> Commitment:
    """Commits to the examples with the given ids.

    Args:
      dataset: where they are.
      ids: which ones; their order does not matter. None at all is a commitment to nothing.
      salt: secret, 16 bytes or more.

    Raises:
      InputError: if an id is out of range or repeated, or the salt too short.
    """
    ids = as_ids(ids, len(dataset))
    if len(np.unique(ids)) != len(ids):
        raise InputError("ids: an id occurs twice; give each id once")
    leaves = sorted((salted_id(salt, each), example_hash(dataset, each, salt)) for each in ids)
    return Commitment(tuple(key for key, _ in leaves), tuple(value for _, value in leaves), salt)


def prove_presence(commitment: Commitment, example: int) -> Proof:
    """Proof that an id is among the committed ones.

    Raises:
      InputError: if it is not.
    """
    key = salted_id(commitment.salt, example)
    place = bisect.bisect_left(commitment.keys, key)
    if commitment.keys[place : place + 1] != (key,):
        raise InputError(f"id {example} is not in the commitment; its absence can be shown")
    return Proof("presence", key, len(commitment.keys), (commitment.leaf(place),))


def prove_absence(commitment: Commitment, example: int) -> Proof:
    """Proof that an id is not among the committed ones.

    Raises:
      InputError: if it is.
    """
    key, size = salted_id(commitment.salt, example), len(commitment.keys)
    place = bisect.bisect_left(commitment.keys, key)
    if commitment.keys[place : place + 1] == (key,):
        raise InputError(f"id {example} is in the commitment; its presence can be shown")
    around = [index for index in (place - 1, place) if 0 <= index < size]
    return Proof("absence", key, size, tuple(commitment.leaf(index) for index in around))


def verify(proof: Proof, root: str, key: str | None = None) -> bool:
    """Whether a proof holds for a published root; whatever it is made of, nothing is raised.

    Args:
      proof: the proof.
      root: of the commitment.
      key: salted id that it must speak of. Without it the proof is taken at its word: the absence
        of some other id is a true statement too.
    """
    try:
        about = key is None or proof.key == key
        return about and _is_well_formed(proof) and _verify(proof, root)
    except (TypeError, ValueError, AttributeError):
        return False


def _is_well_formed(proof: Proof) -> bool:
    hashes = [proof.key, *(part for leaf in proof.leaves for part in (leaf.key, leaf.value))]
    hashes += [part for leaf in proof.leaves for part in leaf.path]
    numbers = [proof.size, *(leaf.index for leaf in proof.leaves)]
    return (
        all(isinstance(each, str) and _HASH.fullmatch(each) for each in hashes)
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(leaf.index < proof.size for leaf in proof.leaves)
    )


def _verify(proof: Proof, root: str) -> bool:
    tops = [_top(leaf, proof.size) for leaf in proof.leaves] or [_EMPTY]
    if any(top is None or _root(proof.size, top) != root for top in tops):
        return False
    keys, places = [leaf.key for leaf in proof.leaves], [leaf.index for leaf in proof.leaves]
    if proof.kind == "presence":
        return keys == [proof.key]
    if proof.kind != "absence":
        return False
    if not places:
        return proof.size == 0
    if len(places) == 2:
        return places[1] == places[0] + 1 and keys[0] < proof.key < keys[1]
    before_all = places == [0] and proof.key < keys[0]
    behind_all = places == [proof.size - 1] and keys[0] < proof.key
    return before_all or behind_all


def tree_levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Hashes of the leaves, of the nodes above them, and so on up to the top.

    A last one without a partner goes up unchanged, which gives the tree of RFC 6962; so no two
    lists of leaves share a tree, as they do where the last one is doubled.
    """
    level = [hashlib.sha256(_LEAF + leaf).digest() for leaf in leaves] or [_EMPTY]
    levels = [level]
    while len(level) > 1:
        above = [_node(*level[index : index + 2]) for index in range(0, len(level) - 1, 2)]
        level = above + level[2 * len(above) :]
        levels.append(level)
    return levels


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


def _root(size: int, top: bytes) -> str:
    return hashlib.sha256(_ROOT + size.to_bytes(8, "big") + top).hexdigest()


def _path(levels: list[list[bytes]], index: int) -> list[bytes]:
    path = []
    for level in levels[:-1]:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        index //= 2
    return path


def _top(leaf: Leaf, size: int) -> bytes | None:
    """The top that a leaf's path leads to; `None` if the path has not the length of its place."""
    value = bytes.fromhex(leaf.key) + bytes.fromhex(leaf.value)
    current, index = hashlib.sha256(_LEAF + value).digest(), leaf.index
    path = [bytes.fromhex(each) for each in leaf.path]
    while size > 1:
        if index ^ 1 < size:
            if not path:
                return None
            beside = path.pop(0)
            current = _node(beside, current) if index % 2 else _node(current, beside)
        index, size = index // 2, (size + 1) // 2
    return None if path else current
