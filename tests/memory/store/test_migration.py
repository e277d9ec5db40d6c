"""Memories of the first format version open as if they were of the present one."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmr.errors import CorruptMemoryError
from cmr.memory.store import Kind, Saved, save
from cmr.memory.store.form import DTYPE_NAMES
from tests.memory.store import hostile
from tests.memory.store.made import FULL, check_same, made


def write_version_1(folder: Path, numbers: list[int]):
    """A folder as version 1 wrote it; returns what is expected in it."""
    content = made(numbers, kinds=(FULL,))
    folder.mkdir()

    def entry(name: str, tensors: dict[str, torch.Tensor]) -> dict:
        save_file(tensors, folder / name)
        raw = (folder / name).read_bytes()
        return {"file": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}

    def parts(tensors: dict[str, torch.Tensor]) -> dict:
        return {
            name: {"dtype": DTYPE_NAMES[t.dtype], "shape": list(t.shape[1:])}
            for name, t in tensors.items()
        }

    shards = []
    for number, at in enumerate(torch.arange(len(numbers)).split(7)):
        tensors = {name: content.rows(0, name, at) for name in FULL.parts}
        shard = entry(f"shard-{number:05d}.safetensors", tensors)
        shards.append({**shard, "numbers": content.numbers[at].tolist()})
    columns = {"numbers": content.numbers, "session": content.session}
    columns |= {f"column.{name}": column for name, column in content.columns.items()}
    table = {
        "format": "cmr-memory",
        "format_version": 1,
        "id": "0123456789abcdef" * 2,
        "library": "0.0.9",
        "parts": parts(tensors),
        "shards": shards,
        "columns": {
            **entry("columns-00000.safetensors", columns),
            "rows": len(numbers),
            "parts": parts(columns),
        },
        "header": content.header,
    }
    (folder / "manifest.json").write_text(json.dumps(table))
    count = len(numbers)
    content.columns = {
        **content.columns,
        "time": torch.zeros(count, dtype=torch.float64),
        "flags": torch.zeros(count, dtype=torch.int64),
        "tier": torch.zeros(count, dtype=torch.int64),
    }
    return content


def test_version_1_opens(tmp_path: Path) -> None:
    content = write_version_1(tmp_path / "memory", list(range(20)))
    saved = Saved.open(tmp_path / "memory")
    saved.verify()
    check_same(saved, content)
    assert (saved.format_version, saved.kinds) == (1, [Kind("full", FULL.parts)])
    assert json.loads((tmp_path / "memory" / "manifest.json").read_text())["format_version"] == 1


def test_the_next_save_is_of_the_present_version(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    write_version_1(folder, list(range(20)))
    base = Saved.open(folder).id
    content = made(range(22), kinds=(FULL,))
    report = save(folder, content, base=base, shard_bytes=7 * FULL.nbytes)
    assert content.asked == 2 and report.shards_reused == 3
    saved = Saved.open(folder)
    assert saved.format_version == 4
    saved.verify()
    check_same(saved, content)
    assert not (folder / "columns-00000.safetensors").exists()


def test_forgetting_in_version_1(tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    write_version_1(folder, list(range(20)))
    saved = Saved.open(folder)
    saved.forget(torch.arange(8, 20))
    assert Saved.open(folder).numbers.tolist() == list(range(8))
    assert not (folder / "shard-00001.safetensors").exists()
    assert Saved.open(folder).columns["tier"].tolist() == [0] * 8


def _edit(change):
    def harm(folder: Path) -> None:
        table = json.loads((folder / "manifest.json").read_text())
        change(table)
        (folder / "manifest.json").write_text(json.dumps(table))

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_edit(lambda t: t.pop("parts")), "'parts' is missing"),
        (_edit(lambda t: t.update(kinds=[])), "'kinds' in a manifest of version 1"),
        (_edit(lambda t: t.update(shards=[1])), "an object expected in 'shards', got int"),
        (_edit(lambda t: t.update(columns=None)), "'columns': dict expected, got NoneType"),
        (_edit(lambda t: t["columns"].pop("parts")), "'parts' is missing"),
        (_edit(lambda t: t["shards"][0].update(file="../x.safetensors")), "plain name"),
        (hostile.text(lambda raw: raw[:100]), "JSON expected"),
    ],
)
def test_a_broken_version_1_is_refused(tmp_path: Path, harm, message: str) -> None:
    write_version_1(tmp_path / "memory", list(range(20)))
    harm(tmp_path / "memory")
    with pytest.raises(CorruptMemoryError, match=message):
        Saved.open(tmp_path / "memory")
