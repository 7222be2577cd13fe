"""Commitments: published vectors, presence, absence, and proofs that were tampered with."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unroll.data import Dataset
from unroll.deletion import merkle
from unroll.errors import InputError

SALT = bytes(range(32))
DATA = Dataset("rows", np.arange(120.0).reshape(40, 3), np.arange(40) % 4, num_classes=4)

# The test vectors of the reference implementation of RFC 6962 (Certificate Transparency).
INPUTS = (
    *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
    "606162636465666768696a6b6c6d6e6f",
)
TOPS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


@pytest.mark.parametrize("count", range(1, 9))
def test_tree_has_the_published_hashes(count):
    leaves = [bytes.fromhex(text) for text in INPUTS[:count]]
    assert merkle.tree_levels(leaves)[-1] == [bytes.fromhex(TOPS[count - 1])]


def test_salted_hash_is_hmac_with_the_published_value():
    # RFC 4231, test case 1: key of 20 bytes 0x0b, data "Hi There". Here the purpose comes first.
    import hmac

    key = b"\x0b" * 20
    assert hmac.new(key, b"Hi There", "sha256").hexdigest().startswith("b0344c61d8db3853")
    found = merkle.salted_hash(key, "id", b"Hi There")
    assert found == hmac.new(key, b"id\x00Hi There", "sha256").hexdigest()


def test_root_of_three_examples_by_hand():
    found = merkle.commit(DATA, [5, 0, 9], SALT)
    pairs = sorted(
        (merkle.salted_id(SALT, i), merkle.example_hash(DATA, i, SALT)) for i in (0, 5, 9)
    )
    leaves = [sha256(b"\x00", bytes.fromhex(key), bytes.fromhex(value)) for key, value in pairs]
    top = sha256(b"\x01", sha256(b"\x01", leaves[0], leaves[1]), leaves[2])
    assert found.root == sha256(b"\x02", (3).to_bytes(8, "big"), top).hex()


@given(
    ids=st.sets(st.integers(0, 39)),
    example=st.integers(0, 39),
)
@settings(max_examples=150, deadline=None)
def test_every_id_is_shown_present_or_absent(ids, example):
    commitment = merkle.commit(DATA, sorted(ids), SALT)
    prove, other = merkle.prove_presence, merkle.prove_absence
    if example not in ids:
        prove, other = other, prove
    proof = prove(commitment, example)
    assert proof.key == merkle.salted_id(SALT, example)
    assert merkle.verify(proof, commitment.root)
    assert merkle.verify(merkle.Proof.from_json(proof.to_json()), commitment.root)
    with pytest.raises(InputError, match=f"id {example} is"):
        other(commitment, example)


def other_hash(text):
    return ("1" if text[0] == "0" else "0") + text[1:]


def other_value(value):
    """Something else of the same type."""
    if isinstance(value, int):
        return [value + 1, value - 1, value + 2**40, -1, True, str(value)]
    if isinstance(value, str) and len(value) == 64:
        return [other_hash(value), value.upper() if value != value.upper() else "", value[:-2], 7]
    return ["absence" if value == "presence" else "presence", "", None]


def tampered(proof):
    """Every proof that differs from a given one in one field."""
    for name in ("kind", "key", "size"):
        for value in other_value(getattr(proof, name)):
            yield dataclasses.replace(proof, **{name: value})
    for place, leaf in enumerate(proof.leaves):
        changed = [
            dataclasses.replace(leaf, **{name: value})
            for name in ("index", "key", "value")
            for value in other_value(getattr(leaf, name))
        ]
        paths = [leaf.path[1:], (*leaf.path, "0" * 64), leaf.path[::-1], None]
        paths += [
            (*leaf.path[:at], other_hash(each), *leaf.path[at + 1 :])
            for at, each in enumerate(leaf.path)
        ]
        changed += [dataclasses.replace(leaf, path=path) for path in paths if path != leaf.path]
        for other in changed:
            leaves = (*proof.leaves[:place], other, *proof.leaves[place + 1 :])
            yield dataclasses.replace(proof, leaves=leaves)
    yield dataclasses.replace(proof, leaves=proof.leaves * 2)
    yield dataclasses.replace(proof, leaves=())
    for place in range(len(proof.leaves) if len(proof.leaves) == 2 else 0):
        yield dataclasses.replace(proof, leaves=(proof.leaves[place],))
        yield dataclasses.replace(proof, leaves=proof.leaves[::-1])


def sorted_ids(ids):
    return sorted(ids, key=lambda example: merkle.salted_id(SALT, example))


# By place of the id among the sorted leaves: in the middle, before all, behind all.
@pytest.mark.parametrize("count", [2, 5, 8, 21])
@pytest.mark.parametrize("place", ["middle", "first", "last"])
def test_no_field_of_a_proof_can_be_changed(count, place):
    everyone = sorted_ids(range(count + 1))
    chosen = everyone[{"middle": count // 2, "first": 0, "last": -1}[place]]
    rest = [example for example in everyone if example != chosen]
    for proof, commitment in (
        (merkle.prove_absence(c := merkle.commit(DATA, rest, SALT), chosen), c),
        (merkle.prove_presence(c := merkle.commit(DATA, everyone, SALT), chosen), c),
    ):
        assert merkle.verify(proof, commitment.root, proof.key)
        assert not merkle.verify(proof, other_hash(commitment.root))
        for other in tampered(proof):
            assert not merkle.verify(other, commitment.root, proof.key), other


def test_absence_between_leaves_that_are_not_neighbours_is_refused():
    """The attack that absence proofs are about: leaving out what lies between."""
    everyone = sorted_ids(range(8))
    commitment = merkle.commit(DATA, everyone, SALT)
    for index in range(1, 7):
        key = commitment.keys[index]
        around = tuple(commitment.leaf(each) for each in (index - 1, index + 1))
        assert not merkle.verify(merkle.Proof("absence", key, 8, around), commitment.root)
        for leaf in around:
            assert not merkle.verify(merkle.Proof("absence", key, 8, (leaf,)), commitment.root)
    empty = merkle.Proof("absence", commitment.keys[0], 0, ())
    assert not merkle.verify(empty, commitment.root)


def test_an_inner_node_does_not_pass_for_a_leaf():
    """Second preimage: two hashes side by side are as long as a leaf."""
    commitment = merkle.commit(DATA, range(4), SALT)
    left, right = commitment.levels[0][:2]
    beside = commitment.levels[1][1]
    for size in (2, 4):
        forged = merkle.Leaf(0, left.hex(), right.hex(), (beside.hex(),))
        proof = merkle.Proof("presence", left.hex(), size, (forged,))
        assert not merkle.verify(proof, commitment.root)
    # The same without the first bytes would have been accepted.
    assert sha256(b"\x01", left, right) == commitment.levels[1][0]


@pytest.mark.parametrize("field", ["inputs", "labels", "groups"])
def test_root_changes_with_every_part_of_an_example(field):
    changed = {
        "inputs": DATA.inputs + np.eye(40, 3, dtype=np.float32) * 1e-3,
        "labels": (DATA.labels + (np.arange(40) == 7)) % 4,
        "groups": np.zeros(40, np.int32),
    }[field]
    other = dataclasses.replace(DATA, **{field: changed})
    before, after = (merkle.commit(data, range(40), SALT).root for data in (DATA, other))
    assert before != after


def test_root_depends_on_ids_and_salt_but_not_on_their_order_or_on_other_examples():
    root = merkle.commit(DATA, [1, 2, 3], SALT).root
    assert merkle.commit(DATA, [3, 1, 2], SALT).root == root
    assert merkle.commit(DATA, [1, 2], SALT).root != root
    assert merkle.commit(DATA, [1, 2, 3], SALT[::-1]).root != root
    inputs = DATA.inputs.copy()
    inputs[4:] = 0  # others may be erased
    erased = dataclasses.replace(DATA, inputs=inputs)
    assert merkle.commit(erased, [1, 2, 3], SALT).root == root


@pytest.mark.parametrize(
    ("ids", "salt", "message"),
    [
        ([0, 0], SALT, "occurs twice"),
        ([40], SALT, "out of range"),
        ([0], b"short", "16 bytes or more"),
        ([0], "0" * 64, "16 bytes or more"),
    ],
)
def test_mistakes(ids, salt, message):
    with pytest.raises(InputError, match=message):
        merkle.commit(DATA, ids, salt)


@pytest.mark.parametrize("value", [None, {}, {"leaves": [{}]}, {"leaves": [], "more": 1}])
def test_what_is_no_proof_is_refused(value):
    with pytest.raises(InputError, match="this is no proof"):
        merkle.Proof.from_json(value)
