"""Saves that are killed: `python -m tests.memory.store.killing FOLDER`, see test_kills.py.

A nursery that has loaded torch forks one child a trial. The child changes a saved memory and is
killed: after a random delay while it saves on and on, or at each of the calls by which it changes
the disk, where it waits to be killed. After each kill the folder must open, all checksums must be
right, and it must hold one of the memories that were being saved, whole. What was noted to be
forgotten before the kill is gone when it has opened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from cmr.memory.store import Saved, outstanding, save
from cmr.memory.store.folder import NOTE, Folder
from tests.memory.store.made import FULL, Made, check_same, made, row

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "close")
LIMIT = 3 * FULL.nbytes
AT_RANDOM = 50

Work = Callable[[], None]


def content(step: int, without: int | None = None) -> Made:
    """The memory after `step` saves: blocks come and go, columns change."""
    numbers = [n for n in range(step, step + 12) if n % 5 != step % 5 and n % 3 != without]
    out = made(numbers)
    out.header = {"step": step, "without": without}
    return out


class Nursery:
    """One folder whose writers are killed.

    Args:
        folder: where it is.
        key: encrypts it.
    """

    def __init__(self, folder: str, key: bytes | None) -> None:
        self.folder, self.key = folder, key
        self.kills: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()

    def check(self) -> tuple[int, int | None]:
        """What the folder holds, after everything in it was held to be right."""
        saved = Saved.open(self.folder, key=self.key)
        saved.verify()
        state = saved.header["step"], saved.header["without"]
        check_same(saved, content(*state))
        return state

    def start(self) -> None:
        """A first save, of step 0."""
        save(self.folder, content(0), key=self.key, shard_bytes=LIMIT)

    def save_next(self) -> None:
        """Saves the next step."""
        saved = Saved.open(self.folder, key=self.key)
        wanted = content(saved.header["step"] + 1)
        save(self.folder, wanted, base=saved.id, key=self.key, shard_bytes=LIMIT)

    def save_on(self) -> None:
        """Saves step after step."""
        while True:
            self.save_next()

    def forget(self) -> None:
        """Forgets session 1."""
        saved = Saved.open(self.folder, key=self.key)
        gone = (saved.session == 1).nonzero().view(-1)
        header = {**saved.header, "without": 1}
        saved.forget(gone, header, shard_bytes=LIMIT)

    def forget_by_note(self) -> None:
        """Notes that session 1 is to be forgotten, and has whoever opens it do that."""
        saved = Saved.open(self.folder, key=self.key)
        gone = saved.numbers[saved.session == 1].tolist()
        note = outstanding.Note(saved.id, "e" * 32, gone, [], [])
        outstanding.write(Folder(self.folder), note)
        Saved.open(self.folder, key=self.key)

    def kill_each(self, work: Work, prepare: Work, noted: bool = False) -> None:
        """Kills `work` before each of its calls that change the disk, each time after `prepare`.

        `noted`: it forgets by a note.
        """
        call = 0
        while True:
            prepare()
            before = self.check()
            name = kill_at(work, call)
            if name is None:
                return
            if noted:
                self.judge_noted(name)
            else:
                self.judge(name, before)
            call += 1

    def judge_noted(self, name: str) -> None:
        """Counts what became of a kill; raises where what was noted is still there."""
        self.kills[name] += 1
        told = any(NOTE.fullmatch(path.name) for path in Path(self.folder).iterdir())
        saved = Saved.open(self.folder, key=self.key)
        saved.verify()
        whole = content(0)
        there = bool((saved.session == 1).any())
        assert not (told and there), "what was noted is still there"
        if not there:
            whole = made([n for n in whole.numbers.tolist() if n % 3 != 1], header=whole.header)
            assert not leaked(self.folder)
        check_same(saved, whole)
        self.check_clean()
        self.outcomes["old" if there else "new"] += 1

    def kill_at_random(self, rng: random.Random, times: int) -> None:
        """Kills saves after random delays."""
        for _ in range(times):
            before = self.check()
            child = in_child(self.save_on)
            time.sleep(rng.uniform(0.0, 0.06))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self.judge("random", before)

    def judge(self, name: str, before: tuple[int, int | None]) -> None:
        """Counts what became of a kill; raises unless the folder is right."""
        self.kills[name] += 1
        self.outcomes["old" if self.check() == before else "new"] += 1

    def check_clean(self) -> None:
        """Raises unless the folder has the files of its manifest and no other."""
        saved = Saved.open(self.folder, key=self.key)
        named = {*saved._manifest.files, "manifest.json", ".lock"}
        found = {path.name for path in Path(self.folder).iterdir()}
        assert found == named, found ^ named


def in_child(work: Work) -> int:
    """Forks; the child works and ends, the parent gets its id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"child: {type(error).__name__}: {error}\n")
        os._exit(1)


def kill_at(work: Work, call: int) -> str | None:
    """Kills `work` just before its call number `call`; its name, None where there are fewer."""
    read, write = os.pipe()
    tell, count = os.write, 0

    def slowly() -> None:
        for name in CALLS:
            setattr(os, name, stopping(name, getattr(os, name)))
        work()

    def stopping(name: str, real: Callable) -> Callable:
        def run(*args, **kwargs):
            nonlocal count
            count += 1
            if count > call:
                tell(write, name.encode() + b" ")
                signal.pause()
            return real(*args, **kwargs)

        return run

    child = in_child(slowly)
    os.close(write)
    name = os.read(read, 100).decode().split(" ")[0]
    os.close(read)
    if name:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert name or status == 0
    return name or None


def canaries() -> list[bytes]:
    """Bytes of blocks of session 1 in the first step."""
    part, salt = FULL.parts["keys.3"], sum(b"keys.3")
    forgotten = content(0)
    chosen = forgotten.numbers[(forgotten.session == 1) & (forgotten.kind == 0)].tolist()
    return [bytes(row(part, n, salt).view(torch.uint8).flatten().tolist()) for n in chosen]


def leaked(folder: str) -> bool:
    """Whether any file has bytes of session 1."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return any(secret in path.read_bytes() for path in files for secret in canaries())


def main() -> None:
    torch.set_num_threads(1)
    rng = random.Random(0)
    total: dict[str, Counter[str]] = {}
    for name, key in (("clear", None), ("encrypted", bytes(range(32)))):
        nursery = Nursery(f"{sys.argv[1]}/{name}", key)
        nursery.kill_each(nursery.save_next, prepare=nursery.start)
        nursery.kill_at_random(rng, AT_RANDOM)
        # The next save that is left alone cleans up.
        nursery.save_next()
        nursery.check_clean()
        total[f"saves, {name}"] = nursery.kills
        total[f"outcomes, {name}"] = nursery.outcomes
    nursery = Nursery(f"{sys.argv[1]}/forgotten", None)
    assert canaries()

    def prepare() -> None:
        if Path(nursery.folder).exists() and nursery.check()[1] == 1:
            # Whatever a killed one has left is erased by the next one.
            nursery.forget()
            nursery.check_clean()
            assert not leaked(nursery.folder)
        nursery.start()
        assert leaked(nursery.folder)

    nursery.kill_each(nursery.forget, prepare)
    total["forgets"], total["outcomes, forgets"] = nursery.kills, nursery.outcomes
    nursery = Nursery(f"{sys.argv[1]}/noted", None)
    nursery.kill_each(nursery.forget_by_note, nursery.start, noted=True)
    total["notes"], total["outcomes, notes"] = nursery.kills, nursery.outcomes
    print(json.dumps(total))


if __name__ == "__main__":
    main()
