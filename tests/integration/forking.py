"""Processes that fork while a memory is attached: `python -m tests.integration.forking [CASE ...]`.

A program of its own, with one thread of PyTorch: those of a process that has computed with more do
not come along into a child. Prints what was found, a case a line; test_fork.py says what is right.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cmr
from cmr.memory.store import Saved
from cmr.memory.store.folder import Folder
from tests.integration.canaries import NAMES, Traces, canary, is_of
from tests.integration.tiny import build

SETTINGS: dict[str, Any] = {
    "window": 64,
    "threshold": 0.0,
    "gain": 0.0,
    "blocks": 4,
    "refresh": 2,
    "budget": 256,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "recent": {},
    "working": {"working_budget": 128},
    "states": {"long_term_budget": 1024, "long_term_store": "kv"},
    "codes": {"working_budget": 128, "long_term_budget": 1024},
    "hierarchical": {
        "long_term_budget": 1024,
        "long_term_store": "kv",
        "strategy": "hierarchical",
    },
}
LONGEST = 250.0
"""Seconds after which a child is taken to hang."""


class Child:
    """A forked process that runs `work(self)` and gives back what it returns.

    Each side says something to the other by `say`, which the other waits for by `hear`.
    """

    def __init__(self, work: Callable[[Child], Any]) -> None:
        down, up = os.pipe(), os.pipe()
        self.id = os.fork()
        (self._in, other), (mine, self._out) = (down, up) if self.id == 0 else (up, down)
        os.close(other)
        os.close(mine)
        if self.id:
            return
        try:
            with warnings.catch_warnings(record=True) as caught, torch.no_grad():
                warnings.simplefilter("always")
                found = {"found": work(self), "warned": [str(w.message) for w in caught]}
        except BaseException:
            found = {"error": traceback.format_exc()[-3000:]}
        self.say(found)
        os._exit(0)

    def say(self, what: Any = None) -> None:
        raw = pickle.dumps(what)
        raw = len(raw).to_bytes(8, "little") + raw
        while raw:
            raw = raw[os.write(self._out, raw) :]

    def hear(self) -> Any:
        return pickle.loads(self._get(int.from_bytes(self._get(8), "little")))

    def _get(self, size: int) -> bytes:
        raw = b""
        while len(raw) < size:
            if not select.select([self._in], [], [], LONGEST)[0]:
                if self.id:
                    os.kill(self.id, signal.SIGKILL)
                raise TimeoutError("the other process hangs")
            part = os.read(self._in, size - len(raw))
            if not part:
                raise EOFError("the other process has ended")
            raw += part
        return raw

    def end(self) -> dict[str, Any]:
        """What came of it; an error of the child's is raised here."""
        try:
            found = self.hear()
        finally:
            os.waitpid(self.id, 0)
            os.close(self._in)
            os.close(self._out)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found


def attached(layout: str, **more: Any) -> cmr.Memory:
    return cmr.attach(build("llama"), **SETTINGS | LAYOUTS[layout] | more)


def read(memory: cmr.Memory, name: str, tokens: int, seed: int = 0) -> None:
    memory.read(canary(name, tokens, seed), sessions=[name])


def ask(memory: cmr.Memory, name: str) -> list[str]:
    """Whose text is recalled for a session."""
    with memory.session(name), torch.no_grad():
        memory._core.adapter.model(canary(name, 20)[None], use_cache=True)
    return owners(p.token_ids for row in memory.recalled for p in row)


def owners(texts: Any) -> list[str]:
    return sorted({next(n for n in NAMES if is_of(n, [t])) for ids in texts for t in ids})


def stored(memory: cmr.Memory, name: str) -> list[str]:
    return owners(block.token_ids for block in memory.inspect(name))


def bytes_of(memory: cmr.Memory, name: str) -> dict[int, dict[str, bytes]]:
    """Everything that is kept of a session's blocks, by their numbers and its names."""
    ring, found = memory._core.ring, {}
    for slot in ring.ledger.slots_of(memory._core.table.require(name)).tolist():
        rows = {**ring.rows(torch.tensor([slot])), "ids": ring.token_ids[slot]}
        raw = {n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in rows.items()}
        found[int(ring.ledger.number[slot])] = raw
    return found


def same(now: dict[int, dict[str, bytes]], before: dict[int, dict[str, bytes]]) -> bool:
    """Whether blocks are what they were, as far as the tiers that they are in keep the same."""
    pairs = [(now[n][part], before[n][part]) for n in now for part in now[n].keys() & before[n]]
    return len(pairs) >= len(now) and all(one == other for one, other in pairs)


def slots_wrong(memory: cmr.Memory) -> list[str]:
    """Slots that are neither held nor free, or both, or hold something that nobody stored."""
    ring, ledger, wrong = memory._core.ring, memory._core.ring.ledger, []
    free = {slot for heap in ledger._free for slot in heap}
    for slot in range(ledger.slots):
        held = int(ledger.owner[slot]) >= 0
        if held == (slot in free):
            wrong.append(f"slot {slot}: held {held}, free {slot in free}")
        if held != (int(ring.session[slot]) >= 0):
            wrong.append(f"slot {slot}: ledger and columns differ")
        if not held and any(part.any() for part in ring.rows(torch.tensor([slot])).values()):
            wrong.append(f"slot {slot}: held by nobody, not zero")
    return wrong


def traces_of(memory: cmr.Memory, name: str) -> Traces:
    """A part of a session's traces: to look for all of them takes long."""
    traces = Traces(memory, name)
    traces.needles = dict(list(traces.needles.items())[::7])
    return traces


def in_long_term(memory: cmr.Memory) -> int:
    return int(memory.stats()["tiers"].get("long_term", {"blocks": 0})["blocks"])


def beside(layout: str) -> dict[str, Any]:
    """Both read, ask, forget and save after the fork, in turns."""
    memory = attached(layout)
    read(memory, "carl", 480)
    before, deep = bytes_of(memory, "carl"), in_long_term(memory)
    folder = Path(tempfile.mkdtemp())

    def work(parent: Child) -> dict[str, Any]:
        asked = ask(memory, "carl")
        mine = bytes_of(memory, "carl")
        kept = [len(mine), same(mine, before)]
        read(memory, "anna", 480)
        parent.say()
        parent.hear()  # ben has been read there
        found = {
            "asked": [asked, ask(memory, "anna")],
            "carl": kept,
            "anna": stored(memory, "anna"),
            "sessions": memory.sessions,
            "ben": parent.hear().in_process(),
        }
        memory.forget("carl")
        memory.save(folder / "child")
        found["slots"] = slots_wrong(memory)
        found["left"] = memory.sessions
        return found

    child = Child(work)
    child.hear()
    read(memory, "ben", 160)
    child.say()
    asked = [ask(memory, "ben"), ask(memory, "carl")]
    child.say(traces_of(memory, "ben"))
    done = child.end()
    now = bytes_of(memory, "carl")
    saved = Saved.open(folder / "child")
    memory.save(folder / "parent")
    return {
        **done["found"],
        "warned": done["warned"],
        "long_term": [deep, len(before)],
        "parent": {
            "asked": asked,
            "same": same(now, before),
            "stored": [stored(memory, name) for name in ("ben", "carl")],
            "sessions": memory.sessions,
            "slots": slots_wrong(memory),
        },
        "saved": sorted(entry["name"] for entry in saved.header["sessions"]),
    }


def sleeping(layout: str) -> dict[str, Any]:
    """The parent reads, before the child has looked at anything; what the child finds then."""
    memory = attached(layout)
    read(memory, "carl", 96)

    def work(parent: Child) -> dict[str, Any]:
        traces = parent.hear()
        first = traces.in_process()
        looked = {
            "stats": in_long_term(memory),
            "tokens": memory.tokens,
            "ben": [name for name in memory.sessions if name == "ben"],
            "again": traces.in_process(),
        }
        read(memory, "anna", 480)
        parent.say(traces_of(memory, "anna"))
        return {"first": first, **looked, "slots": slots_wrong(memory)}

    child = Child(work)
    read(memory, "ben", 480)
    traces = traces_of(memory, "ben")
    assert len(traces.in_process()) > len(traces.needles) // 2
    child.say(traces)
    foreign = child.hear().in_process()
    return {**child.end()["found"], "parent": foreign, "needles": len(traces.needles)}


def beside_threads(layout: str) -> dict[str, Any]:
    """Forks at any moment while other threads of the parent read, ask and save."""
    memory, folder, over = attached(layout), Path(tempfile.mkdtemp()), threading.Event()
    read(memory, "carl", 256)
    broken: list[str] = []

    def until_over(work: Callable[[int], Any]) -> threading.Thread:
        def run() -> None:
            turn = 0
            while not over.is_set():
                try:
                    work(turn)
                except Exception:
                    broken.append(traceback.format_exc()[-800:])
                    return
                turn += 1

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def serve(_: int) -> None:
        read(memory, "ben", 96)
        with memory.session("ben"):
            ask(memory, "ben")

    threads = [
        until_over(serve),
        until_over(lambda _: memory.save(folder / "parent")),
        until_over(lambda _: memory._core.retriever.cache.stats()),
    ]

    def work(_: Child) -> dict[str, Any]:
        read(memory, "anna", 160)
        found = {
            "anna": [ask(memory, "anna"), stored(memory, "anna")],
            "ben": [stored(memory, "ben")] if "ben" in memory.sessions else [["ben"]],
        }
        memory.save(folder / f"child-{os.getpid()}")
        memory.forget("anna")
        return found

    children = []
    for turn in range(6):
        time.sleep(0.05 + 0.013 * turn)
        children.append(Child(work))
    found = [child.end()["found"] for child in children]
    over.set()
    for thread in threads:
        thread.join()
    return {"found": found, "broken": broken, "anna": "anna" in memory.sessions}


def many() -> dict[str, Any]:
    """Forks side by side, and children of children: nothing is left open or mapped."""
    memory = attached("states")
    read(memory, "carl", 480)

    def counted() -> dict[str, Any]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return {
            "maps": len(maps),
            "files": sorted({line.split()[4] for line in maps if line.endswith("(deleted)")}),
            "open": len(links),
            "nameless": sum("(deleted)" in os.readlink(at) for at in links if os.path.lexists(at)),
        }

    def work(_: Child) -> Any:
        read(memory, "anna", 480)
        return [ask(memory, "carl"), counted()]

    def generation(left: int) -> Any:
        read(memory, "anna", 480, seed=left)
        now = counted()
        return [now] if not left else [now, *Child(lambda _: generation(left - 1)).end()["found"]]

    Child(work).end()
    before = counted()
    children = [Child(work).end()["found"] for _ in range(12)]
    return {
        "before": before,
        "after": counted(),
        "children": children,
        "generations": Child(lambda _: generation(5)).end()["found"],
    }


def server(layout: str) -> dict[str, Any]:
    """Four workers of a server that was loaded before it forked, each with two users in turns."""
    memory = attached(layout)

    def worker(number: int) -> Callable[[Child], Any]:
        users = [NAMES[number], NAMES[(number + 1) % 4]]

        def work(_: Child) -> list[Any]:
            wrong = []
            for turn in range(6):
                for user in users:
                    read(memory, user, 96, seed=10 * number + turn)
                    found = [ask(memory, user), stored(memory, user)]
                    wrong += [(user, f) for f in found if f != [user]]
            wrong += slots_wrong(memory)
            return [*wrong, *(n for n in memory.sessions if n not in users)]

        return work

    workers = [Child(worker(number)) for number in range(4)]
    return {"wrong": [child.end()["found"] for child in workers], "parent": memory.sessions}


def inside() -> dict[str, Any]:
    """A fork in the middle of a forward, by the thread that runs it."""
    memory = attached("states")
    model = memory._core.adapter.model
    read(memory, "carl", 480)
    found: dict[str, Any] = {}

    def fork(*_: Any) -> None:
        handle.remove()

        def work(_: Child) -> dict[str, str]:
            said = {}
            for name, use in (
                ("forward", lambda: model(canary("anna", 8)[None])),
                ("inspect", lambda: memory.inspect()),
                ("release", memory._core.lock.release),
            ):
                try:
                    use()
                except cmr.AttachError as error:
                    said[name] = str(error)
            return said

        found.update(Child(work).end()["found"])

    handle = memory._core.adapter.layers[3].register_forward_hook(fork)
    found["asked"] = ask(memory, "carl")
    return found


def held() -> dict[str, Any]:
    """Locks that another thread of the parent holds, and queues that it stands in."""
    memory = attached("states")
    cache, upkeep = memory._core.retriever.cache, cmr.BackgroundOptimizer(lambda: None, 0.01)
    read(memory, "carl", 480)
    ask(memory, "carl")
    upkeep.start()
    go, held = threading.Event(), threading.Event()

    def hold() -> None:
        with memory._core.lock, memory._core.lock._inner, cache._lock, upkeep._turning:
            held.set()
            go.wait()

    def wait() -> None:
        held.wait()
        memory.inspect()

    threads = [threading.Thread(target=work) for work in (hold, wait)]
    for thread in threads:
        thread.start()
    held.wait()
    while not memory._core.lock._inner.locked():
        time.sleep(0.01)

    def work(_: Child) -> dict[str, Any]:
        read(memory, "anna", 480)
        cache.stats()
        found = {"waiting": memory._core.lock.waiting, "upkeep": upkeep.running}
        upkeep.start()
        found["again"] = upkeep.running
        upkeep.close()
        found["asked"] = ask(memory, "anna")
        memory.detach()
        return found

    child = Child(work)
    go.set()
    found = child.end()["found"]
    for thread in threads:
        thread.join()
    upkeep.close()
    return found | {"parent": ask(memory, "carl")}


def elsewhere() -> dict[str, Any]:
    """A memory that cannot come along: on another device, and without room for its files."""
    memory = attached("states", long_term_folder=(folder := tempfile.mkdtemp()))
    read(memory, "carl", 480)

    def work(parent: Child) -> list[str]:
        said = []
        for _ in range(2):
            try:
                memory.inspect()
            except cmr.StoreError as error:
                said.append(str(error).replace(folder, "FOLDER"))
        parent.say()
        parent.hear()
        read(memory, "anna", 480)
        return [*said, *ask(memory, "anna"), *stored(memory, "carl"), *slots_wrong(memory)]

    os.rename(folder, folder + "-away")
    child = Child(work)
    child.hear()
    os.rename(folder + "-away", folder)
    child.say()
    found: dict[str, Any] = {"room": child.end()["found"]}
    memory._core.ring.device = torch.device("cuda")

    def refused(_: Child) -> str:
        try:
            memory.inspect()
        except cmr.AttachError as error:
            return str(error)
        return "not refused"

    return found | {"device": Child(refused).end()["found"]}


def saving() -> dict[str, Any]:
    """A fork in the middle of a save: the folder is the parent's, and not busy longer than that."""
    memory, folder = attached("states"), Path(tempfile.mkdtemp()) / "saved"
    read(memory, "carl", 480)
    children: list[Child] = []

    def wait(parent: Child) -> None:
        parent.hear()

    def unwind(_: Child) -> str:
        # As a child does that leaves the frames of the save by an exception.
        try:
            written.throw(KeyboardInterrupt)
        except KeyboardInterrupt:
            return "left"
        return "stayed"

    def go_on(_: Child) -> str:
        try:
            at.commit([], b"{}")
        except cmr.StoreError as error:
            return str(error)
        return "committed"

    at = Folder(folder)

    def generator() -> Any:
        with at.writing():
            yield

    written = generator()
    next(written)
    (at.staging / "mine").write_bytes(b"of the parent")
    left = [Child(unwind).end()["found"], Child(go_on).end()["found"]]
    children.append(Child(wait))
    there = [path.name for path in at.staging.iterdir()]
    written.close()
    report = memory.save(folder)
    children[0].say()
    children[0].end()
    return {"left": left, "staged": there, "blocks": report.blocks, "stored": len(memory.inspect())}


PLAN = [
    *((beside, layout) for layout in LAYOUTS),
    *((sleeping, layout) for layout in ("recent", "working", "states", "codes")),
    *((work, layout) for layout in ("working", "states") for work in (server, beside_threads)),
    *((work,) for work in (many, inside, held, elsewhere, saving)),
]


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    # Loads here what every case would load again.
    warm = attached("hierarchical")
    read(warm, "dora", 480)
    ask(warm, "dora")
    warm.detach()
    for work, *arguments in PLAN:
        name = " ".join([work.__name__, *arguments])
        if wanted and name not in wanted:
            continue
        started = time.perf_counter()
        try:
            # In a process of its own: what an earlier one has read is not in it.
            found = Child(lambda _: work(*arguments)).end()["found"]  # noqa: B023
        except Exception as error:
            found = {"error": str(error)}
        print(json.dumps([name, found, time.perf_counter() - started]), flush=True)


if __name__ == "__main__":
    main()
