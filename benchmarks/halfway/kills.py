"""Processes killed while they save, load and forget: is the folder right, is forgotten text gone?

A child reads texts of several users into a memory with all tiers, saves it (all of it, or some
sessions), forgets (a session, a span of text, blocks) and loads again, over and over in one folder,
until SIGKILL ends it: after a random time, or at a chosen call by which it changes the disk (of a
write, half is done). Beside it a plain account of the texts says what memory and folder must hold;
what is about to be done and what is done goes into a file. The next child goes on in the folder.

After each kill:
open: the folder opens, and every checksum is right. state: it holds what it held before the
operation under way, or what it is to hold after it. load: so does a memory that loads it.
forgotten: of what a finished `forget` was told, no file holds ids, keys or values; not right after
the kill, nor when the folder was loaded. left: files that the manifest does not name are gone after
that loading, or after the save behind it. refused: an operation failed in a process not yet killed.
A failure is counted once for each child. The row says how often the operation under way had taken
effect (`new`) and how often not (`old`).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.users.stress import VOCABULARY, tiny
from cmr.memory.store import Saved

SETTINGS: dict[str, Any] = {
    "strict": True,
    "window": 48,
    "block_size": 8,
    "budget": 64,
    "working_budget": 64,
    "long_term_budget": 4096,
    "long_term_store": "kv",
    "threshold": 0.0,
}
"""Small upper tiers, so that blocks are saved from all of them, and no block is ever evicted."""
SIZE = SETTINGS["block_size"]
CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "close")
OPERATIONS = {
    "read": 2,
    "save": 4,
    "save some": 1,
    "forget session": 2,
    "forget text": 2,
    "forget ids": 2,
    "load": 1,
}
MOST = 12
"""Operations of a child that nobody kills."""
CHAIN = 12
"""Kills in one folder."""

Block = tuple[int, ...]
Texts = dict[str, list[Block]]


class Worker:
    """The child: changes a memory and its folder, and tells what it does.

    Args:
        model: what the memory is attached to.
        folder: what is saved to and loaded from.
        log: a file that is told of each operation.
        seed: of the operations.
    """

    def __init__(self, model: Any, folder: Path, log: Path, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._write = os.write  # before anything stands in its place
        self.calls: Counter[str] = Counter()
        self._stored: Texts = {}
        self._saved: Texts | None = None
        if (folder / "manifest.json").exists():
            self._memory = cmr.load(folder, model)
            self._stored = texts_of(self._memory)
            self._saved = dict(self._stored)
        else:
            self._memory = cmr.attach(model, **SETTINGS)

    def go_on(self) -> None:
        """Operation after operation."""
        for _ in range(MOST):
            kinds = list(OPERATIONS)
            kind = self._rng.choices(kinds, list(OPERATIONS.values()))[0]
            if not any(self._stored.values()) or (kind == "load" and not self._saved):
                kind = "read"
            getattr(self, f"_{kind.replace(' ', '_')}")(kind)

    def _tell(self, **what: Any) -> None:
        self._write(self._log, json.dumps(what).encode() + b"\n")

    def _do(self, kind: str, after: Texts | None, work: Callable[[], Any], **done: Any) -> None:
        self._tell(begin=kind, before=self._saved, after=after)
        try:
            work()
        except Exception:
            self._tell(refused=traceback.format_exc()[-2000:])
            raise
        self._saved = after
        self._tell(end=kind, after=after, calls=self.calls, **done)

    # -- operations ------------------------------------------------------------------------------

    def _read(self, kind: str) -> None:
        names = sorted(self._stored)
        if len(names) >= 5 and sum(map(len, self._stored.values())) > 80:
            return self._forget_session("forget session")
        name = self._rng.choice([*names[:2], f"user{self._rng.randrange(10**9)}"])
        # Ids from 3 on: the first ones are the model's own.
        tokens = [self._rng.randrange(3, VOCABULARY) for _ in range(SIZE * self._rng.randint(2, 9))]
        text = torch.tensor(tokens)
        blocks = [tuple(tokens[at : at + SIZE]) for at in range(0, len(tokens), SIZE)]
        self._do(kind, self._saved, lambda: self._memory.read(text, sessions=[name]))
        self._stored[name] = self._stored.get(name, []) + blocks

    def _save(self, kind: str) -> None:
        self._do(kind, dict(self._stored), lambda: self._memory.save(self._folder))

    def _save_some(self, kind: str) -> None:
        names = self._rng.sample(sorted(self._stored), self._rng.randint(1, len(self._stored)))
        after = {name: self._stored[name] for name in names}
        self._do(kind, after, lambda: self._memory.save(self._folder, sessions=names))

    def _forget_session(self, kind: str) -> None:
        name = self._rng.choice(sorted(self._stored))
        self._forget(kind, {name: self._stored[name]}, {name}, session=name)

    def _forget_text(self, kind: str) -> None:
        name, block = self._some_block()
        at = self._rng.randint(0, SIZE - 5)
        self._forget(kind, {name: [block]}, set(), text=list(block[at : at + 5]))

    def _forget_ids(self, kind: str) -> None:
        name, _ = self._some_block()
        found = self._memory.inspect(name)
        chosen = self._rng.sample(list(found), self._rng.randint(1, min(3, len(found))))
        gone = [tuple(block.token_ids) for block in chosen]
        self._forget(kind, {name: gone}, set(), ids=[block.id for block in chosen])

    def _load(self, kind: str) -> None:
        """A session comes back from the folder, as it is there."""
        name = self._rng.choice(sorted(self._saved or {}))

        def again() -> None:
            if name in self._stored:
                self._memory.forget(name, files=False)
            self._memory.load(self._folder, sessions=[name])

        self._do(kind, self._saved, again)
        self._stored[name] = (self._saved or {})[name]

    def _some_block(self) -> tuple[str, Block]:
        name = self._rng.choice([n for n, blocks in sorted(self._stored.items()) if blocks])
        return name, self._rng.choice(self._stored[name])

    def _forget(self, kind: str, gone: Texts, ended: set[str], **what: Any) -> None:
        after = None if self._saved is None else without(self._saved, gone, ended)
        traces = self._traces({block for blocks in gone.values() for block in blocks})
        self._do(kind, after, lambda: self._memory.forget(**what), gone=traces)
        self._stored = without(self._stored, gone, ended)

    def _traces(self, blocks: set[Block]) -> list[str]:
        """Bytes by which some blocks are told in any file: of ids, keys and values."""
        ring, found = self._memory._core.ring, []
        for slot in ring.ledger.slots_of(None).tolist():
            if tuple(ring.token_ids[slot].tolist()) in blocks:
                found.append(ring.token_ids[slot].int().numpy().tobytes())
                parts = ring.rows(torch.tensor([slot])).items()
                states = [part for name, part in parts if name.startswith(("keys", "values"))]
                # The last token's: the first one's are those of every text that begins with it.
                found += [state[0, 0, -1].contiguous().numpy().tobytes() for state in states]
        return [trace.hex() for trace in found]


def without(texts: Texts, gone: Texts, ended: set[str]) -> Texts:
    """Texts without some blocks of a session, and without sessions that ended."""
    return {
        name: [block for block in blocks if block not in gone.get(name, ())]
        for name, blocks in texts.items()
        if name not in ended
    }


def texts_of(memory: cmr.Memory) -> Texts:
    """What a memory says that it holds."""
    found: Texts = {name: [] for name in memory.sessions}
    for block in memory.inspect(order="position"):
        found[block.session].append(tuple(block.token_ids))
    return found


def texts_in(saved: Saved) -> Texts:
    """What a folder holds."""
    names = {entry["number"]: entry["name"] for entry in saved.header["sessions"]}
    found: Texts = {name: [] for name in names.values()}
    tokens = saved.columns["token_ids"].tolist()
    for number, ids in zip(saved.session.tolist(), tokens, strict=True):
        found[names[number]].append(tuple(ids))
    return found


def same(one: Texts | None, other: Texts | None) -> bool:
    """Whether two hold the same blocks in the same sessions, in whichever order."""

    def plain(texts: Texts | None) -> Any:
        return texts and {name: sorted(map(tuple, blocks)) for name, blocks in texts.items()}

    return bool(plain(one) == plain(other))


class Killer:
    """One campaign: children, their kills, and what was found after each.

    Args:
        folder: an empty one.
        seed: of everything.

    Attributes:
        kills: kind of kill to what it found: `kills`, `old`, `new` and the failures by name.
        failures: what went wrong, in words.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._place, self._rng = folder, random.Random(seed)
        self._model = tiny()
        self._calls: Counter[str] = Counter(dict.fromkeys(CALLS, 40))
        self._seconds, self._chain = 2.0, 0
        self._gone: set[bytes] = set()
        self.kills: dict[str, Counter[str]] = defaultdict(Counter)
        self.failures: list[str] = []
        self._begin()

    def _begin(self) -> None:
        """A folder of its own for the next kills."""
        self._chain += 1
        self._folder, self._log = self._place / f"{self._chain}", self._place / "log"
        self._gone.clear()

    def kill(self, number: int) -> bool:
        """One child; whether it was killed, and did not come to its end before."""
        if number % CHAIN == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._begin()
        self._log.unlink(missing_ok=True)
        kind = self._rng.choice(["random", *CALLS])
        at = self._rng.randrange(self._calls[kind] + 1) if kind in CALLS else -1
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            work(self._model, self._folder, self._log, self._rng.random(), kind, at, writing)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        started = time.perf_counter()
        if kind == "random":
            time.sleep(self._rng.uniform(0, self._seconds))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed:
            self._seconds = (self._seconds + time.perf_counter() - started) / 2
        self._judge(kind, killed)
        return killed

    def _told(self) -> list[dict[str, Any]]:
        """What the child has told; the last line may have been cut off."""
        lines = self._log.read_bytes().split(b"\n") if self._log.exists() else []
        return [json.loads(line) for line in lines[:-1]]

    def _judge(self, kind: str, killed: bool) -> None:
        told = self._told()
        count, wrong = self.kills[kind], list[tuple[str, str]]()
        history = [what["end"] for what in told if "end" in what]
        for what in told:
            self._gone |= {bytes.fromhex(trace) for trace in what.get("gone", ())}
            if "refused" in what:
                wrong.append(("refused", what["refused"]))
        if not killed and told:
            for name, seen in told[-1].get("calls", {}).items():
                self._calls[name] = (self._calls[name] + seen) // 2
        last = next((what for what in reversed(told) if "refused" not in what), None)
        if not killed and not wrong and (last is None or "begin" in last):
            wrong.append(("refused", "the child ended by itself"))
        if last is not None and (found := self._found(last, wrong)) and killed:
            count[found] += 1
        count["kills"] += killed
        under_way = None if last is None else last.get("begin")
        for name, why in {name: why for name, why in reversed(wrong)}.items():
            count[name] += 1
            self.failures.append(f"{kind} in {under_way} after {history}: {name}: {why}")
        if wrong:
            self._begin()

    def _found(self, last: dict[str, Any], wrong: list[tuple[str, str]]) -> str:
        """Looks at the folder; whether it holds the state before, or after the last operation."""
        before, after = last.get("before", last["after"]), last["after"]
        self._search("after the kill", wrong)
        if not (self._folder / "manifest.json").exists():
            if before is not None:
                wrong.append(("open", "no manifest"))
            return "old"
        try:
            saved = Saved.open(self._folder)
            saved.verify()
        except Exception as error:
            wrong.append(("open", repr(error)))
            return ""
        texts = texts_in(saved)
        outcome = "old" if same(texts, before) else "new"
        if outcome == "new" and not same(texts, after):
            wrong.append(("state", f"{texts} expected {before} or {after}"))
        del saved
        try:
            memory = cmr.load(self._folder, self._model)
        except Exception as error:
            wrong.append(("load", repr(error)))
            return outcome
        try:
            # What a journal has finished meanwhile is another state than before.
            if not any(same(texts_of(memory), right) for right in (texts, after)):
                wrong.append(("load", f"{texts_of(memory)} expected {texts}"))
            self._search("after loading", wrong)
            if self._left():
                memory.save(self._folder)
                self._search("after the next save", wrong)
            if self._left():
                wrong.append(("left", f"{self._left()}"))
        finally:
            memory.detach()
        return outcome

    def _left(self) -> list[str]:
        named = {*Saved.open(self._folder)._manifest.files, "manifest.json", ".lock"}
        return sorted({path.name for path in self._folder.iterdir()} - named)

    def _search(self, when: str, wrong: list[tuple[str, str]]) -> None:
        for path in self._folder.rglob("*"):
            raw = path.read_bytes() if path.is_file() else b""
            if found := sum(trace in raw for trace in self._gone):
                wrong.append(("forgotten", f"{found} traces in {path.name} {when}"))


def work(model: Any, folder: Path, log: Path, seed: float, kind: str, at: int, ready: int) -> None:
    """The child's life; `at`: the call of this kind at which it kills itself."""
    try:
        worker = Worker(model, folder, log, int(seed * 2**32))

        def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if name == kind and worker.calls[name] == at:
                    if name == "write":
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                worker.calls[name] += 1
                return real(*args, **kwargs)

            return call

        os.write(ready, b"x")
        for name in CALLS:
            setattr(os, name, counted(name, getattr(os, name)))
        worker.go_on()
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        os._exit(1)
    os._exit(0)


def main() -> int:
    """Runs the benchmark; 1 where anything was found."""
    parser = Parser(__doc__)
    parser.add_argument("--kills", type=whole(), default=500, help="how many")
    parser.add_argument("--folder", type=Path, help="where to save (default: a temporary folder)")
    parser.add_seed()
    parser.add_threads(1)
    args = parser.parse_args()
    started = time.perf_counter()
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=args.folder) as folder:
        killer = Killer(Path(folder), args.seed)
        number = done = 0
        while done < args.kills:
            done += killer.kill(number)
            number += 1
            if not done % 100:
                print(f"{done} kills, {len(killer.failures)} failures", flush=True)
    for failure in killer.failures[:20]:
        print(failure[:1500])
    conditions = rows.conditions(None, args.seed, memory=SETTINGS)
    names = ("open", "state", "load", "forgotten", "left", "refused")
    for kind, count in sorted(killer.kills.items()):
        row = {"kill": kind, **{name: count[name] for name in ("kills", "old", "new", *names)}}
        print(row)
        rows.append("kills", {**conditions, **row})
    print(f"{done} kills, {len(killer.failures)} failures, {time.perf_counter() - started:.0f} s")
    return int(bool(killer.failures))


if __name__ == "__main__":
    run(main)
