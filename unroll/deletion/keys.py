"""The three secrets and near-secrets of a ledger, each in a file of its own.

    signing.pem     Ed25519 private key (RFC 8032): who holds it can write the ledger
    verifying.pem   its public key: for everybody
    salt.hex        32 random bytes: who holds it can tell which ids a ledger speaks of

Design: one folder, written under another name and renamed, so that a kill leaves all three or none.
Rejected: the salt inside the ledger; ids are small numbers, and hashes of them under a known salt
are undone by trying all of them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import uuid
from pathlib import Path
from typing import Any

from unroll.errors import InputError, StoreError

_SALT_BYTES = 32
_SIGNING, _VERIFYING, _SALT = "signing.pem", "verifying.pem", "salt.hex"


def create_keys(folder: str | os.PathLike) -> Path:
    """Makes a key pair and a salt in a new folder, readable by their owner only (mode 0600).

    Raises:
      InputError: if the folder exists; keys are never overwritten.
      StoreError: if it cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = Path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists; keys are never overwritten, choose another folder")
    private = Ed25519PrivateKey.generate()
    contents = {
        _SIGNING: private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        _VERIFYING: private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        _SALT: secrets.token_hex(_SALT_BYTES).encode() + b"\n",
    }
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True, mode=0o700)
        for name, content in contents.items():
            _write_private(temporary / name, content)
        os.rename(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"cannot write keys to {folder} ({error.strerror})") from None
    return folder


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def load_signing_key(folder: str | os.PathLike) -> Any:
    """The Ed25519 private key of a folder made by `create_keys`.

    Raises:
      InputError: if it is missing, readable by others, or not such a key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path = Path(folder) / _SIGNING
    content = _read(path, secret=True)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is no Ed25519 private key; give the folder of create_keys")
    return key


def load_verifying_key(folder: str | os.PathLike) -> Any:
    """The Ed25519 public key of a folder made by `create_keys`.

    Raises:
      InputError: if it is missing or not such a key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    path = Path(folder) / _VERIFYING
    content = _read(path, secret=False)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is no Ed25519 public key; give the folder of create_keys")
    return key


def load_salt(folder: str | os.PathLike) -> bytes:
    """The salt of a folder made by `create_keys`, 32 bytes.

    Raises:
      InputError: if it is missing, readable by others, or of another form.
    """
    path = Path(folder) / _SALT
    text = _read(path, secret=True).decode("ascii", errors="replace").strip()
    try:
        salt = bytes.fromhex(text)
    except ValueError:
        salt = b""
    if len(salt) != _SALT_BYTES:
        raise InputError(f"{path} is no salt of {_SALT_BYTES} bytes; give a folder of create_keys")
    return salt


def _read(path: Path, secret: bool) -> bytes:
    try:
        mode = path.stat().st_mode & 0o777
        if secret and mode & 0o077:
            raise InputError(f"{path} can be read by others (mode {mode:o}); run chmod 600 {path}")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"there is no key {path}; make one with create_keys") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from None
