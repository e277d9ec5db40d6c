"""What was forgotten is in no byte of any file."""

from pathlib import Path

import pytest
import torch

from cmr.errors import CorruptMemoryError, StoreBusyError, StoreError
from cmr.memory.store import Saved, save
from cmr.memory.store import folder as folder_module
from cmr.memory.store.manifest import Manifest, Shard
from cmr.memory.store.saver import Saver
from tests.memory.store.made import FULL, check_same, made, row, same_bytes

LIMIT = 6 * FULL.nbytes
CANARY = "Zanzibar-canary-48213"


def rows_of(numbers: list[int]) -> list[bytes]:
    """Bytes of each part of blocks, four at a time: any of them in a file is a leak."""
    out = []
    for number in numbers:
        for name, part in FULL.parts.items():
            data = row(part, number, sum(name.encode())).reshape(-1).view(torch.uint8)
            out += [bytes(data[i : i + 8].tolist()) for i in range(0, len(data) - 7, 8)]
    return out


def leaks(folder: Path, canaries: list[bytes]) -> list[str]:
    """Files with any of the canaries in them, whatever they are called."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [p.name for p in files if any(canary in p.read_bytes() for canary in canaries)]


def with_canary(numbers):
    content = made(numbers, kinds=(FULL,))
    content.header = {"sessions": {CANARY: 1, "anna": 0}}
    return content


@pytest.fixture
def erased(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the files that were unlinked or replaced held at that moment."""
    seen: list[bytes] = []
    real = folder_module.Folder.remove

    def remove(self, path, overwrite):
        real_unlink = folder_module.os.unlink

        def unlink(target):
            seen.append(Path(target).read_bytes())
            real_unlink(target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder_module.os, "unlink", unlink)
            real(self, path, overwrite)

    monkeypatch.setattr(folder_module.Folder, "remove", remove)
    return seen


def test_no_byte_is_left_in_any_file_nor_in_what_was_removed(
    tmp_path: Path, erased: list[bytes]
) -> None:
    content = with_canary(range(30))
    save(tmp_path, content, shard_bytes=LIMIT)
    gone = content.session == 1
    numbers = content.numbers[gone].tolist()
    canaries = [*rows_of(numbers), CANARY.encode()]
    assert len(leaks(tmp_path, canaries)) > 2
    # A save that was killed left these.
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "blocks-0123456789abcdef.safetensors").write_bytes(canaries[0])
    (tmp_path / "blocks-0123456789abcdef.safetensors").write_bytes(canaries[0])
    with open(tmp_path / "manifest.json", "rb") as old:  # the inode that will be replaced
        saved = Saved.open(tmp_path)
        report = saved.forget(gone.nonzero().view(-1), {"sessions": {"anna": 0}})
        assert set(old.read()) == {0}
    assert leaks(tmp_path, canaries) == []
    assert len(erased) > 4 and all(set(data) <= {0} for data in erased)
    rest = made([n for n in range(30) if n % 3 != 1], kinds=(FULL,))
    rest.header = {"sessions": {"anna": 0}}
    for opened in (saved, Saved.open(tmp_path)):
        opened.verify()
        check_same(opened, rest)
        assert opened.id == report.id


def test_files_without_the_blocks_stay(tmp_path: Path) -> None:
    content = with_canary(range(30))
    save(tmp_path, content, shard_bytes=LIMIT)
    before = {path.name for path in tmp_path.glob("blocks-*")}
    saved = Saved.open(tmp_path)
    report = saved.forget((content.numbers == 0).nonzero().view(-1))
    assert len(before & {path.name for path in tmp_path.glob("blocks-*")}) == len(before) - 1
    assert report.shards_reused == len(before) - 1


def test_rows_that_an_older_version_left_behind_go_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept files in which some rows were dead; forgetting, even nothing, does not."""
    first = save(tmp_path, with_canary(range(30)))

    def as_it_was(self: Saver, kept: Manifest) -> list[Shard]:
        return [
            shard._replace(numbers=[n if n in self.content.numbers else -1 for n in shard.numbers])
            for shard in kept.shards
        ]

    with monkeypatch.context() as patch:
        patch.setattr(Saver, "_reused", as_it_was)
        save(tmp_path, with_canary(range(1, 30)), base=first.id)
    assert leaks(tmp_path, rows_of([0]))
    check_same(Saved.open(tmp_path), with_canary(range(1, 30)))
    Saved.open(tmp_path).forget(torch.tensor([], dtype=torch.int64))
    assert not leaks(tmp_path, rows_of([0]))
    check_same(Saved.open(tmp_path), with_canary(range(1, 30)))


def test_a_clean_save_leaves_nothing_of_what_it_does_not_hold(
    tmp_path: Path, erased: list[bytes]
) -> None:
    first = save(tmp_path, with_canary(range(30)), shard_bytes=LIMIT)
    content = made(range(1, 30), kinds=(FULL,))
    save(tmp_path, content, base=first.id, shard_bytes=LIMIT, clean=True)
    assert leaks(tmp_path, [*rows_of([0]), CANARY.encode()]) == []
    assert erased and all(set(data) <= {0} for data in erased)
    check_same(Saved.open(tmp_path), content)


def test_damage_is_not_written_again(tmp_path: Path) -> None:
    """Written again, a damaged file would get a checksum that is right."""
    content = with_canary(range(30))
    save(tmp_path, content, shard_bytes=LIMIT)
    saved = Saved.open(tmp_path)
    held = next(saved.batches()).positions.tolist()
    assert 0 in held
    with open(tmp_path / saved._manifest.shards[0].file, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    others = [i for i in range(30) if i not in held]
    saved.forget(torch.tensor(others[:1]), shard_bytes=LIMIT)
    with pytest.raises(CorruptMemoryError, match="checksum"):
        saved.forget(torch.tensor([0]))
    with pytest.raises(CorruptMemoryError, match="checksum"):
        saved.verify()


def test_everything_can_be_forgotten(tmp_path: Path) -> None:
    save(tmp_path, with_canary(range(9)))
    saved = Saved.open(tmp_path)
    saved.forget(torch.arange(9), {})
    assert len(saved) == len(Saved.open(tmp_path)) == 0
    assert not list(tmp_path.glob("blocks-*"))


def test_while_somebody_reads_nothing_is_erased(tmp_path: Path) -> None:
    content = with_canary(range(30))
    save(tmp_path, content, shard_bytes=LIMIT)
    reader, saved = Saved.open(tmp_path), Saved.open(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    held = next(reader.batches())
    gone = held.positions[:1]
    with pytest.raises(StoreBusyError, match=r"is in use, so it cannot be erased: nothing was"):
        saved.forget(gone)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    for name, rows in held.parts.items():
        assert same_bytes(rows, content.rows(0, name, held.positions))
    del held, rows
    saved.forget(gone)
    with pytest.raises(StoreError, match="saved again since it was opened"):
        next(reader.batches())


def test_an_outdated_view_forgets_nothing(tmp_path: Path) -> None:
    first = save(tmp_path, with_canary(range(9)))
    saved = Saved.open(tmp_path)
    save(tmp_path, with_canary(range(12)), base=first.id)
    with pytest.raises(StoreError, match="open it again"):
        saved.forget(torch.tensor([0]))
    check_same(Saved.open(tmp_path), with_canary(range(12)))


@pytest.mark.parametrize(
    "at", [torch.tensor([9]), torch.tensor([-1]), torch.tensor([0.0]), torch.tensor([[0]])]
)
def test_positions_are_checked_first(tmp_path: Path, at: torch.Tensor) -> None:
    save(tmp_path, with_canary(range(9)))
    with pytest.raises(ValueError, match=r"positions .*expected"):
        Saved.open(tmp_path).forget(at)
    check_same(Saved.open(tmp_path), with_canary(range(9)))
