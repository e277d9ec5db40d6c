"""Encrypted memories: nothing in the clear, nothing changed unnoticed, the right key or none."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cmr.errors import CorruptMemoryError, MemoryKeyError, MissingPackageError, StoreError
from cmr.memory.store import Kind, Part, Saved, datafile, save, vault
from tests.memory.store.made import FULL, check_same, made, same_bytes
from tests.memory.store.test_forget import CANARY, LIMIT, leaks, rows_of, with_canary
from tests.memory.store.test_hostile import snapshot

pytest.importorskip("cryptography")

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
WIDE = Kind("wide", {"a": Part(torch.uint8, (100_000,)), "b": Part(torch.float32, (7,))})


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "SCRYPT", {"n": 1 << 8, "r": 8, "p": 1})


@pytest.mark.parametrize("key", [KEY, bytearray(KEY), "correct horse battery staple", "пароль"])
def test_an_encrypted_memory_comes_back_to_the_bit(tmp_path: Path, key) -> None:
    content = made(range(20))
    save(tmp_path, content, key=key, shard_bytes=LIMIT)
    saved = Saved.open(tmp_path, key=key)
    saved.verify()
    check_same(saved, content)
    some = torch.tensor([16, 2])
    assert same_bytes(saved.rows(0, "index", some), content.rows(0, "index", some))


def test_chunks_of_a_large_file_come_back(tmp_path: Path) -> None:
    content = made(range(11), kinds=(WIDE,))
    save(tmp_path, content, key=KEY)
    assert max(p.stat().st_size for p in tmp_path.iterdir()) > 4 * vault.CHUNK
    check_same(Saved.open(tmp_path, key=KEY), content)


def test_nothing_stands_there_in_the_clear(tmp_path: Path) -> None:
    content = with_canary(range(30))
    canaries = [
        *rows_of(list(range(30))),
        CANARY.encode(),
        b"keys.3",
        b"relevance",
        bytes(content.numbers[:4].view(torch.uint8).tolist()),
    ]
    save(tmp_path / "clear", content)
    save(tmp_path / "sealed", content, key=KEY)
    assert len(leaks(tmp_path / "clear", canaries)) == 3
    assert leaks(tmp_path / "sealed", canaries) == []
    clear = json.loads((tmp_path / "sealed" / "manifest.json").read_text())
    assert set(clear) == {"format", "format_version", "encryption", "sealed"}
    assert set(clear["encryption"]) == {"cipher", "kdf", "wrapped"}


def test_incremental_saves_go_on(tmp_path: Path) -> None:
    first = save(tmp_path, made(range(40), kinds=(FULL,)), key=KEY, shard_bytes=LIMIT)
    content = made(range(43), kinds=(FULL,))
    report = save(tmp_path, content, base=first.id, key=KEY, shard_bytes=LIMIT)
    assert content.asked < 10 and report.shards_reused >= 6
    saved = Saved.open(tmp_path, key=KEY)
    saved.verify()
    check_same(saved, content)


def test_no_key_ever_meets_a_nonce_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[bytes, bytes]] = []
    real = vault._package()

    class Recorded:
        def __init__(self, key: bytes) -> None:
            self.key, self.cipher = key, real(key)

        def encrypt(self, nonce, data, more):
            used.append((self.key, nonce))
            return self.cipher.encrypt(nonce, data, more)

        def decrypt(self, *args):
            return self.cipher.decrypt(*args)

    monkeypatch.setattr(vault, "_package", lambda: Recorded)
    base = None
    for count in (12, 14, 14):
        content = made(range(count), kinds=(WIDE,))
        base = save(tmp_path, content, base=base, key=KEY).id
    Saved.open(tmp_path, key=KEY).forget(torch.tensor([1]))
    save(tmp_path, content, key=KEY)
    assert len(used) > 20 and len(set(used)) == len(used)
    assert max(sum(key == k for k, _ in used) for key, _ in used) >= 5  # a key over chunks


@pytest.mark.parametrize(
    ("saved_with", "opened_with", "message"),
    [
        (KEY, None, "is encrypted, give its key"),
        (KEY, OTHER, "not the one it was saved with"),
        (KEY, "a passphrase", "32 bytes expected, got a passphrase"),
        ("hunter2", "hunter3", "not the one it was saved with"),
        ("hunter2", KEY, "a passphrase expected, got a key of 32 bytes"),
        (KEY, b"short", "32 bytes expected, got 5"),
        ("hunter2", "", "something in it"),
        ("hunter2", "\ud800", "valid text"),
        (None, KEY, "is not encrypted, but a key was given"),
    ],
)
def test_the_right_key_or_a_clear_error(tmp_path, saved_with, opened_with, message) -> None:
    save(tmp_path, made(range(5)), key=saved_with)
    before = snapshot(tmp_path)
    with pytest.raises(MemoryKeyError, match=message) as caught:
        Saved.open(tmp_path, key=opened_with)
    assert "hunter2" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_passphrase_is_the_same_however_it_was_typed(tmp_path: Path) -> None:
    save(tmp_path, made(range(5)), key="caf\u00e9")
    assert len(Saved.open(tmp_path, key="cafe\u0301")) == 5


@pytest.mark.parametrize("base", ["its id", None])
def test_without_its_key_an_encrypted_memory_is_not_replaced(tmp_path: Path, base) -> None:
    first = save(tmp_path, made(range(5)), key=KEY)
    base = first.id if base else None
    with pytest.raises(MemoryKeyError, match="give a key, or save to another folder"):
        save(tmp_path, made(range(6)), base=base)
    with pytest.raises(MemoryKeyError, match="not the one it was saved with"):
        save(tmp_path, made(range(6)), base=first.id, key=OTHER)
    check_same(Saved.open(tmp_path, key=KEY), made(range(5)))


def test_a_new_key_writes_everything_anew(tmp_path: Path) -> None:
    save(tmp_path, made(range(5)), key=KEY)
    before = {path.name for path in tmp_path.iterdir() if path.suffix == ".sealed"}
    save(tmp_path, made(range(5)), key=OTHER)
    assert not before & {path.name for path in tmp_path.iterdir()}
    check_same(Saved.open(tmp_path, key=OTHER), made(range(5)))
    with pytest.raises(MemoryKeyError):
        Saved.open(tmp_path, key=KEY)


def test_turning_to_encryption_leaves_no_clear_text(tmp_path: Path) -> None:
    first = save(tmp_path, with_canary(range(9)))
    with open(tmp_path / "manifest.json", "rb") as old:
        save(tmp_path, with_canary(range(9)), base=first.id, key=KEY)
        assert set(old.read()) == {0}
    assert leaks(tmp_path, [*rows_of(list(range(9))), CANARY.encode()]) == []
    assert {path.suffix for path in tmp_path.iterdir()} == {".sealed", ".json", ""}
    check_same(Saved.open(tmp_path, key=KEY), with_canary(range(9)))


def test_forgetting_in_an_encrypted_memory(tmp_path: Path) -> None:
    content = with_canary(range(20))
    save(tmp_path, content, key="a passphrase", shard_bytes=LIMIT)
    saved = Saved.open(tmp_path, key="a passphrase")
    saved.forget((content.session == 1).nonzero().view(-1), {"sessions": {"anna": 0}})
    rest = made([n for n in range(20) if n % 3 != 1], kinds=(FULL,))
    rest.header = {"sessions": {"anna": 0}}
    check_same(Saved.open(tmp_path, key="a passphrase"), rest)


def test_only_what_a_session_needs_is_decrypted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = made(range(30), kinds=(WIDE,))
    save(tmp_path, content, key=KEY)
    saved = Saved.open(tmp_path, key=KEY)
    opened: list[int] = []
    real = vault.Unsealer.open
    monkeypatch.setattr(
        vault.Unsealer, "open", lambda *args: (opened.append(args[1]), real(*args))[1]
    )
    (batch,) = saved.batches([1])
    assert len(batch.positions) == 10
    assert 4 <= len(opened) <= 7  # a third of 12 chunks, and the narrow part at the start
    for name, rows in batch.parts.items():
        assert same_bytes(rows, content.rows(0, name, batch.positions))


def test_without_the_package_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'cmr\[crypt\]'") as caught:
        save(tmp_path / "memory", made(range(5)), key=KEY)
    assert isinstance(caught.value, ImportError)
    assert not (tmp_path / "memory").exists()
    save(tmp_path / "memory", made(range(5)))  # and in the clear it is not needed


# -- changed files --------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[tuple[vault.Vault, Path, bytes]]:
    """A data key, an encrypted file of five chunks, and what is in it."""
    keys = vault.Vault.create(KEY)
    plain = bytes(torch.arange(5 * vault.CHUNK - 7).to(torch.uint8).tolist())
    path = tmp_path / "blocks-0123456789abcdef.sealed"
    path.write_bytes(b"".join(keys.seal(path.name, [plain[:1000], plain[1000:]])))
    yield keys, path, plain


def read_all(keys: vault.Vault, path: Path) -> bytes:
    with datafile.DataFile(path, path.stat().st_size, keys) as file:
        return file.read(0, file.size)


def chunks(raw: bytes) -> list[bytes]:
    step = vault.CHUNK + vault.TAG
    return [raw[at : at + step] for at in range(vault.HEAD, len(raw), step)]


CHANGES = {
    "swapped": lambda head, c: head + c[1] + c[0] + b"".join(c[2:]),
    "cut at a chunk": lambda head, c: head + b"".join(c[:4]),
    "cut within": lambda head, c: head + b"".join(c)[:-100],
    "repeated": lambda head, c: head + c[0] + b"".join(c),
    "last dropped, last but one shortened": lambda head, c: head + b"".join(c[:3]) + c[3][:-9],
    "flipped": lambda head, c: head + bytes([c[0][0] ^ 1]) + b"".join(c)[1:],
    "tag flipped": lambda head, c: head + b"".join(c)[:-1] + bytes([c[-1][-1] ^ 1]),
    "other salt": lambda head, c: head[:-1] + bytes([head[-1] ^ 1]) + b"".join(c),
    "other mark": lambda head, c: b"X" + head[1:] + b"".join(c),
    "nothing": lambda head, c: b"",
    "only a head": lambda head, c: head,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_refused(sealed, change: str) -> None:
    keys, path, plain = sealed
    assert read_all(keys, path) == plain
    raw = path.read_bytes()
    path.write_bytes(CHANGES[change](raw[: vault.HEAD], chunks(raw)))
    with pytest.raises(CorruptMemoryError, match=path.name):
        read_all(keys, path)


def test_a_file_under_another_name_is_refused(sealed) -> None:
    keys, path, _ = sealed
    other = path.with_name("blocks-fedcba9876543210.sealed")
    path.rename(other)
    with pytest.raises(CorruptMemoryError, match="chunk 0 is damaged or out of place"):
        read_all(keys, other)


def test_swapped_files_are_found_while_reading(tmp_path: Path) -> None:
    save(tmp_path, made(range(24), kinds=(FULL,)), key=KEY, shard_bytes=4 * FULL.nbytes)
    saved = Saved.open(tmp_path, key=KEY)
    a, b = sorted(tmp_path.glob("blocks-*"), key=lambda path: path.stat().st_size)[-2:]
    assert a.stat().st_size == b.stat().st_size
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)
    with pytest.raises(CorruptMemoryError, match="out of place"):
        list(saved.batches())
    with pytest.raises(CorruptMemoryError):
        Saved.open(tmp_path, key=KEY)


def _envelope(**change):
    def harm(table):
        table["encryption"] = {**table["encryption"], **change}

    return harm


def _kdf(**change):
    def harm(table):
        table["encryption"]["kdf"] |= change

    return harm


def _sealed(text):
    return lambda table: table.__setitem__("sealed", text)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_envelope(cipher="none"), "'aes-256-gcm' expected"),
        (_envelope(wrapped="AAAA"), "'wrapped': 48 bytes expected, got 3"),
        (_envelope(wrapped="*"), "base64 expected"),
        (_envelope(kdf=[]), "dict expected, got list"),
        (_kdf(name="md5"), "'scrypt' expected, got 'md5'"),
        (_kdf(salt="AAAA"), "the key is not the one"),
        (_kdf(n=1 << 30), "scrypt within 1024 MiB expected"),
        (_kdf(n=1000), "scrypt within"),
        (_kdf(p=1 << 20), "scrypt within"),
        (_kdf(r=0), "scrypt within"),
        (_kdf(n=-1), "an integer in"),
        (_kdf(n=1 << 9), "the key is not the one"),
        (_sealed("AAAA"), "an encrypted text expected"),
        (_sealed(7), "str expected, got int"),
        (lambda table: table.pop("sealed"), "'sealed' is missing"),
        (lambda table: table.pop("encryption"), "not encrypted, but a key was given"),
        (lambda table: table.update(encryption=None), "an object with 'cipher' expected"),
        (lambda table: table.update(sealed=table["sealed"][:-8]), "damaged or out of place"),
        (lambda table: table.update(format_version=5), "format version 4 or older expected"),
    ],
)
def test_a_changed_envelope_is_refused(tmp_path: Path, harm, message: str) -> None:
    save(tmp_path, made(range(5)), key="right")
    table = json.loads((tmp_path / "manifest.json").read_text())
    harm(table)
    (tmp_path / "manifest.json").write_text(json.dumps(table))
    before = snapshot(tmp_path)
    with pytest.raises(StoreError, match=message):
        Saved.open(tmp_path, key="right")
    assert snapshot(tmp_path) == before
