"""Saving and loading 64,000 tokens beside what the disk does.

Blocks as SmolLM2-135M's memory has them (keys and values of 21 layers and the index, bfloat16),
random, in turns with plain writes and reads of as many bytes. A write ends when the disk has it
(fsync); before a read the system is told to drop the files from its cache. Loading runs in a
process of its own and copies into tensors that are there before, so its peak shows what it takes
besides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, folder, run, whole
from cmr.evaluation.machine import version
from cmr.memory.store import Kind, Part, Saved, save

BLOCK, LAYERS, HEADS, DIM, HIDDEN = 32, 21, 3, 64, 576
PIECE = 8 << 20
SESSIONS = 8

_HEADS = Part(torch.bfloat16, (HEADS, BLOCK, DIM))
KIND = Kind(
    "full",
    {"index": Part(torch.bfloat16, (BLOCK, HIDDEN))}
    | {f"{what}.{layer}": _HEADS for layer in range(LAYERS) for what in ("keys", "values")},
)


class Blocks:
    """A memory of random blocks that lies in memory as a ring buffer does: a tensor a part."""

    def __init__(self, count: int) -> None:
        self.header = {"benchmark": True}
        self.kinds = (KIND,)
        self.numbers = torch.arange(count)
        self.kind = torch.zeros(count, dtype=torch.int64)
        self.session = torch.arange(count) % SESSIONS
        self.columns = {
            "relevance": torch.rand(count),
            "token_ids": torch.randint(0, 49152, (count, BLOCK)),
        }
        self.parts = {
            name: torch.randint(-(2**15), 2**15, (count, *part.shape), dtype=torch.int16).view(
                part.dtype
            )
            for name, part in KIND.parts.items()
        }

    def rows(self, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
        return self.parts[part].index_select(0, at)

    @property
    def nbytes(self) -> int:
        return len(self.numbers) * KIND.nbytes

    def between(self, first: int, end: int) -> Blocks:
        """The same memory with some of its blocks."""
        fewer = object.__new__(Blocks)
        fewer.__dict__ = {
            **self.__dict__,
            "columns": {n: c[first:end] for n, c in self.columns.items()},
            "parts": {n: part[first:end] for n, part in self.parts.items()},
        }
        for name in ("numbers", "kind", "session"):
            setattr(fewer, name, getattr(self, name)[first:end])
        return fewer


def drop_from_cache(path: Path) -> None:
    """Asks the system to forget the (clean) pages of a file, or of all files of a folder."""
    for file in path.iterdir() if path.is_dir() else [path]:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def plain_write(path: Path, content: Blocks) -> float:
    """Seconds to write the tensors to one file and flush it."""
    start = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for tensor in content.parts.values():
        data = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        while data:
            data = data[os.write(fd, data[:PIECE]) :]
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - start


def plain_read(path: Path) -> float:
    """Seconds to read a file that is not in the cache into one buffer, again and again."""
    drop_from_cache(path)
    buffer = bytearray(PIECE)
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def status(name: str) -> int:
    """Bytes in a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def load(path: str, key: bytes | None, verify: bool) -> dict[str, Any]:
    """Opens and copies into tensors that are there before; seconds and memory."""
    count = len(Saved.open(path, key=key))
    into = {n: torch.full((count, *p.shape), 1, dtype=p.dtype) for n, p in KIND.parts.items()}
    drop_from_cache(Path(path))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = status("VmRSS")
    start = time.perf_counter()
    saved = Saved.open(path, key=key)
    if verify:
        saved.verify()
    for batch in saved.batches():
        for name, part in batch.parts.items():
            into[name].index_copy_(0, batch.positions, part)
    seconds = time.perf_counter() - start
    held = sum(t.numel() * t.element_size() for t in into.values())
    peak = status("VmHWM")
    checksum = sum(int(t.view(torch.int16).to(torch.int64).sum()) for t in into.values())
    return {
        "seconds": seconds,
        "tensors": held,
        "peak_over_tensors": round((peak - before + held) / held, 3),
        "extra_mb": round((peak - before) / 1e6, 1),
        "checksum": checksum,
    }


def load_apart(path: Path, key: bytes | None, verify: bool) -> dict[str, Any]:
    """`load` in a fresh process."""
    words = [str(path), key.hex() if key else "", "verify" if verify else ""]
    command = [sys.executable, "-m", "benchmarks.cost.save_speed", "--load", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=rows.ROOT)
    return json.loads(done.stdout)


def summary(seconds: Sequence[float], size: int) -> dict[str, float]:
    """Median, fastest and slowest seconds and the median's GB/s."""
    middle = statistics.median(seconds)
    return {
        "s": round(middle, 3),
        "s_min": round(min(seconds), 3),
        "s_max": round(max(seconds), 3),
        "gb_s": round(size / middle / 1e9, 3),
    }


def measure(folder: Path, content: Blocks, rounds: int) -> dict[str, Any]:
    """All ways in turns, in one row."""
    checksum = sum(int(t.view(torch.int16).to(torch.int64).sum()) for t in content.parts.values())
    ways: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    rewritten: dict[str, int] = {}

    def note(name: str, seconds: float) -> None:
        ways.setdefault(name, []).append(seconds)

    for _ in range(rounds):
        note("disk_write", plain_write(folder / "plain", content))
        note("disk_read", plain_read(folder / "plain"))
        (folder / "plain").unlink()
        for name, key in (("", None), ("_encrypted", os.urandom(32))):
            path = folder / f"memory{name}"
            count = len(content.numbers)
            fewer = content.between(0, count - 32)
            report = save(path, fewer, key=key)
            note(f"save{name}", report.seconds)
            report = save(path, content, base=report.id, key=key)
            note(f"save_1024_tokens_more{name}", report.seconds)
            base = report.id
            for verify in (False, True):
                way = f"load{'_verified' if verify else ''}{name}"
                found = load_apart(path, key, verify)
                assert found["checksum"] == checksum
                note(way, found["seconds"])
                peaks.setdefault(way, []).append(found["peak_over_tensors"])
            # The oldest ones of all sessions have left: their files are written without them.
            report = save(path, content.between(32, count), base=base, key=key)
            note(f"save_1024_tokens_fewer{name}", report.seconds)
            rewritten[f"save_1024_tokens_fewer{name}"] = report.bytes_written
            shutil.rmtree(path)
    row: dict[str, Any] = {"tokens": len(content.numbers) * BLOCK, "bytes": content.nbytes}
    row |= {name: summary(spent, content.nbytes) for name, spent in ways.items()}
    for name in ways:
        if "1024" in name:
            row[name].pop("gb_s")
    row["bytes_rewritten"] = rewritten
    row["peak_over_tensors"] = {name: max(found) for name, found in peaks.items()}
    for name, disk in (
        ("save", "disk_write"),
        ("load", "disk_read"),
        ("load_verified", "disk_read"),
    ):
        row[f"{name}_share_of_disk"] = round(row[name]["gb_s"] / row[disk]["gb_s"], 3)
    return row


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(2 * BLOCK * BLOCK), default=64_000)
    parser.add_argument("--rounds", type=whole(), default=5)
    parser.add_argument("--folder", type=folder, help="on the disk to measure")
    parser.add_argument("--load", nargs=3, default=None, help=argparse.SUPPRESS)
    parser.add_threads(2)
    options = parser.parse_args(words)
    if options.load:
        path, key, verify = options.load
        print(json.dumps(load(path, bytes.fromhex(key) or None, bool(verify))))
        return
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        found = measure(Path(place), Blocks(options.tokens // BLOCK), options.rounds)
    about = rows.conditions(block=BLOCK, layers=LAYERS, sessions=SESSIONS, rounds=options.rounds)
    about |= {
        "load": [round(x, 2) for x in os.getloadavg()],
        "cryptography": version("cryptography"),
    }
    rows.append("save_speed", about | found)
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    run(main)
