"""Keys, entries and ledgers that several tests of the ledger use."""

import datetime

from unroll.deletion import keys
from unroll.deletion.entry import Entry
from unroll.deletion.ledger import Ledger

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def hash_of(digit):
    """A text that has the form of a hash."""
    return f"{digit:x}" * 64


def entry(number=0, **changes):
    """An entry with every field filled in."""
    fields = dict(
        kind="deletion",
        requests=[hash_of(1), hash_of(2)],
        dataset=hash_of(3),
        data_before=hash_of(4),
        data_after=hash_of(5),
        spec=hash_of(6),
        schedule=hash_of(7),
        weights=hash_of(8),
        seed=number,
        initial=hash_of(9),
        parameters_before=hash_of(10),
        parameters_after=hash_of(11),
        method="replay",
        recipe=hash_of(12),
        code={"unroll": "0.1.0", "source": hash_of(13)},
        packages={"jax": "0.10.2", "numpy": "2.4.6"},
        environment={"device": "cpu", "xla_flags": "--a=1", "x64": False},
        metrics={"verification_error": 0.0, "seconds": 1.5},
    )
    return Entry(**{**fields, **changes})


def open_ledger(folder):
    """A ledger in a folder beside new keys, and its signing key."""
    if not (folder / "keys").exists():
        keys.create_keys(folder / "keys")
    ledger = Ledger.open(folder / "ledger.jsonl", keys.load_verifying_key(folder / "keys"))
    return ledger, keys.load_signing_key(folder / "keys")


def at(seconds):
    """A time."""
    return START + datetime.timedelta(seconds=seconds)


def filled(folder, count=4):
    """A ledger with entries one second apart, and its signing key."""
    ledger, private = open_ledger(folder)
    for number in range(count):
        ledger.append(entry(number), private, now=at(number))
    return ledger, private
