"""Encryption at rest: one data key a folder, one key a file, chunks that know their place.

A random data key is wrapped (AES-256-GCM) by a key made from the user's: HKDF of 32 given bytes, or
scrypt of a passphrase, either with a random salt that is stored. Each file has a key of its own,
HKDF-SHA256(data key, random salt of the file, its name), so no nonce can ever repeat: a file is
written once, its chunks are counted in the nonce and the last one is marked there, which
authenticates their order and the file's end. That is the scheme of Tink's AES-GCM-HKDF streaming
encryption, after Hoang, Reyhanitabar, Rogaway and Vizár (2015). An incremental save keeps the data
key, a full one draws a new one. What is not protected: that somebody puts back an older save whole.
"""

from __future__ import annotations

import base64
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from cmr.errors import MemoryKeyError, MissingPackageError
from cmr.memory.store.form import corrupt, dump, take, take_size

CHUNK, TAG, SALT = 256 << 10, 16, 32
MAGIC = b"CMRSEAL1"
HEAD = len(MAGIC) + SALT
# 128 MiB of work, as OWASP's guide to storing passwords recommends.
SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}
_MAX_SCRYPT = 1 << 30

Key = bytes | str


def check_key(key: object) -> None:
    """Raises unless `key` is None, 32 bytes or a passphrase and the package for it is there."""
    if key is None:
        return
    if isinstance(key, (bytes, bytearray)):
        if len(key) != 32:
            raise MemoryKeyError(f"a key of 32 bytes expected, got {len(key)}")
    elif not isinstance(key, str):
        raise TypeError(f"a key is 32 bytes or a passphrase, got {type(key).__name__}")
    elif not key:
        raise MemoryKeyError("a passphrase with something in it expected, got ''")
    _package()


def _package() -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingPackageError(
            "encrypted memories need the package cryptography: run `pip install 'cmr[crypt]'`"
        ) from error
    return AESGCM


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decode(table: Any, key: str, where: object) -> bytes:
    """The bytes behind base64 text in `table[key]`."""
    text = take(table, key, str, where)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        corrupt(where, f"{key!r}: base64 expected")


def _wrapping_key(key: Key, kdf: dict[str, Any], where: object) -> bytes:
    """The key that wraps the data key, from the user's key as the stored parameters say."""
    name, salt = take(kdf, "name", str, where), decode(kdf, "salt", where)
    if name == "hkdf-sha256":
        if isinstance(key, str):
            raise MemoryKeyError(f"{where}: a key of 32 bytes expected, got a passphrase")
        return _derive(bytes(key), salt, b"cmr memory wrapping key")
    if name != "scrypt":
        corrupt(where, f"'hkdf-sha256' or 'scrypt' expected, got {name[:40]!r}")
    n, r, p = (take_size(kdf, at, _MAX_SCRYPT, where) for at in ("n", "r", "p"))
    if not (n > 1 and n & (n - 1) == 0 and r and p and 128 * n * r * p <= _MAX_SCRYPT):
        corrupt(where, f"scrypt within {_MAX_SCRYPT >> 20} MiB expected, got n={n} r={r} p={p}")
    if not isinstance(key, str):
        raise MemoryKeyError(f"{where}: a passphrase expected, got a key of 32 bytes")
    try:
        secret = unicodedata.normalize("NFC", key).encode("utf-8")
    except UnicodeEncodeError:
        raise MemoryKeyError("a passphrase of valid text expected") from None
    memory = 128 * r * (n + p + 2)
    return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=2 * memory, dklen=32)


class Vault:
    """The data key of an encrypted folder; `envelope` is what the manifest says of it."""

    def __init__(self, data_key: bytes, envelope: dict[str, Any]) -> None:
        self._data_key = data_key
        self.envelope = envelope

    @classmethod
    def create(cls, key: Key) -> Vault:
        """A new data key, wrapped by the user's key."""
        check_key(key)
        kdf: dict[str, Any] = {"salt": _encode(os.urandom(SALT))}
        if isinstance(key, str):
            kdf |= {"name": "scrypt", **SCRYPT}
        else:
            kdf["name"] = "hkdf-sha256"
        data_key = os.urandom(32)
        # The wrapping key is new with its salt, so the nonce may be a constant.
        wrapping = _package()(_wrapping_key(key, kdf, "the key"))
        wrapped = wrapping.encrypt(bytes(12), data_key, dump(kdf))
        return cls(data_key, {"cipher": "aes-256-gcm", "kdf": kdf, "wrapped": _encode(wrapped)})

    @classmethod
    def open(cls, envelope: Any, key: Key, where: object) -> Vault:
        """The data key that `envelope` holds, unwrapped with the user's key."""
        check_key(key)
        cipher = take(envelope, "cipher", str, where)
        if cipher != "aes-256-gcm":
            corrupt(where, f"'cipher': 'aes-256-gcm' expected, got {cipher[:40]!r}")
        kdf = take(envelope, "kdf", dict, where)
        wrapped = decode(envelope, "wrapped", where)
        if len(wrapped) != 32 + TAG:
            corrupt(where, f"'wrapped': {32 + TAG} bytes expected, got {len(wrapped)}")
        from cryptography.exceptions import InvalidTag

        try:
            data_key = _package()(_wrapping_key(key, kdf, where)).decrypt(
                bytes(12), wrapped, dump(kdf)
            )
        except InvalidTag:
            raise MemoryKeyError(f"{where}: the key is not the one it was saved with") from None
        return cls(data_key, envelope)

    def _cipher(self, salt: bytes, name: str) -> Any:
        return _package()(_derive(self._data_key, salt, b"cmr file " + name.encode("utf-8")))

    def seal(self, name: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The bytes of an encrypted file called `name`, from `pieces` of any length but none."""
        salt = os.urandom(SALT)
        cipher = self._cipher(salt, name)
        yield MAGIC + salt
        waiting, number = bytearray(), 0
        for piece in pieces:
            waiting += piece
            # The last chunk is marked, so a full one is kept back until more is known to follow.
            while len(waiting) > CHUNK:
                yield cipher.encrypt(_nonce(number, False), waiting[:CHUNK], None)
                del waiting[:CHUNK]
                number += 1
        yield cipher.encrypt(_nonce(number, True), waiting, None)

    def unseal(self, name: str, salt: bytes, where: object) -> Unsealer:
        """Opens the chunks of the encrypted file called `name`, whose head holds `salt`."""
        return Unsealer(self._cipher(salt, name), where)

    def unseal_text(self, name: str, sealed: bytes, where: object) -> bytes:
        """The plain bytes of an encrypted file called `name` that is held in memory."""
        if plain_size(len(sealed)) < 0 or not sealed.startswith(MAGIC):
            corrupt(where, "'sealed': an encrypted text expected, got something else")
        unsealer = self.unseal(name, sealed[len(MAGIC) : HEAD], where)
        chunks = range(HEAD, len(sealed), CHUNK + TAG)
        return b"".join(
            unsealer.open(number, number == len(chunks) - 1, sealed[at : at + CHUNK + TAG])
            for number, at in enumerate(chunks)
        )


class Unsealer:
    """Opens the chunks of one encrypted file."""

    def __init__(self, cipher: Any, where: object) -> None:
        self._cipher, self._where = cipher, where

    def open(self, number: int, last: bool, data: bytes) -> bytes:
        """The plain bytes of a chunk; refused where it was changed, moved or cut off."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(_nonce(number, last), data, None)
        except InvalidTag:
            corrupt(self._where, f"chunk {number} is damaged or out of place")


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def plain_size(size: int) -> int:
    """Bytes of what is in an encrypted file of `size` bytes; -1 where no file has that size."""
    body = size - HEAD
    chunks = -(-body // (CHUNK + TAG))
    plain = body - TAG * chunks
    return plain if chunks > 0 and plain > (chunks - 1) * CHUNK else -1
