"""Many users at once: is every answer the one that a user alone gets, and read from whose memory?

Each user does the same operations twice, on a memory of its own making: once with nobody beside it,
in one thread, and once beside all others and a thread of upkeep. `threads`: a thread a user, with a
surrounding `with memory.session(...)` and with handles in turns. `tasks`: asyncio tasks, which let
each other run at every operation and generate in threads. `turns`: generators in one thread that
are driven in turns, token by token. The operations: generate (greedy, sampled from the best token
alone, beams, streamed), forwards token by token, read, search, forget, save, fork, settings of a
request, a change of settings, and the memory switched off.

A foreign read is a block of another session among those that a search gave a row; every search is
looked at. The model is tiny and random: this is about whose memory is read, not about what it says.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.tiny import tiny_llama
from benchmarks.users.modes import MODES, alone
from benchmarks.users.user import VOCABULARY, User

SETTINGS: dict[str, Any] = {
    "strict": True,
    "window": 48,
    "block_size": 8,
    "budget": 2_048,
    "working_budget": 65_536,
    "threshold": 0.0,
    "refresh": 1,
}
"""A small first tier, so that blocks sink and rise; a search at every token."""


def tiny() -> Any:
    """A random Llama of four layers, always the same."""
    return tiny_llama(
        7,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )


class Watch:
    """Looks at what every search gives whom, and counts.

    Args:
        memory: whose searches they are.

    Attributes:
        recalls: searches that gave something to read.
        foreign: blocks that belong to another session than the row that reads them.
    """

    def __init__(self, memory: cmr.Memory) -> None:
        self._core = core = memory._core
        self.recalls = self.foreign = 0
        recall = core.recall

        def look(choice: Any, base: Any, ask: Any) -> Any:
            found = recall(choice, base, ask)
            if found is not None:
                self._check(choice.table, ask.sessions)
            return found

        core.recall = look  # type: ignore[method-assign]

    def _check(self, table: torch.Tensor, sessions: torch.Tensor) -> None:
        """Under the memory's lock, as all searches are."""
        owners = self._core.ring.session[table.clamp(min=0)]
        wrong = (owners != sessions[:, None, None]) & (table >= 0)
        self.recalls += 1
        self.foreign += int(wrong.sum())


class Upkeep:
    """A thread that tidies up, looks and lifts, over and over."""

    def __init__(self, memory: cmr.Memory) -> None:
        self.memory, self.rounds, self.errors = memory, 0, list[str]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Upkeep:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        memory = self.memory
        while not self._stop.wait(0.05):
            try:
                memory.consolidate()
                for name in memory.sessions[:2]:
                    memory.lift(name)
                memory.stats()
                memory.inspect(limit=4)
                self.rounds += 1
            except cmr.UnknownSessionError:  # a fork that came to its end meanwhile
                continue
            except Exception as error:
                self.errors.append(f"upkeep: {type(error).__name__}: {error}")


def compare(mode: str, users: int, operations: int, seed: int = 0) -> dict[str, Any]:
    """One mode against a user alone; see the module.

    Raises:
        RuntimeError: the model does not work afterwards, or is not as it was after `detach`.
    """
    model = tiny()
    names = [f"user{number}" for number in range(users)]
    probe = torch.randint(3, VOCABULARY, (1, 30), generator=torch.Generator().manual_seed(99))
    plain = model(probe).logits

    def attached(folder: Path) -> tuple[cmr.Memory, list[User]]:
        memory = cmr.attach(model, **SETTINGS)
        made = [
            User(memory, model, name, 1000 * seed + at, folder) for at, name in enumerate(names)
        ]
        for user in made:
            user.begin()
        return memory, made

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        memory, everybody = attached(Path(folder) / "alone")
        want = alone(everybody, operations)
        memory.detach()
        memory, everybody = attached(Path(folder) / "beside")
        watch = Watch(memory)
        began = time.perf_counter()
        with Upkeep(memory) as upkeep:
            have = MODES[mode](everybody, operations)
        seconds = time.perf_counter() - began
        if not torch.isfinite(memory.session(names[0]).forward(probe).logits).all():
            raise RuntimeError("the model does not work afterwards")
        memory.detach()
        if not torch.equal(model(probe).logits, plain):
            raise RuntimeError("the model is not as it was")
    pairs = [
        (name, number, a, b)
        for name in names
        for number, (a, b) in enumerate(zip(want.answers[name], have.answers[name], strict=True))
    ]
    wrong = [pair for pair in pairs if pair[2] != pair[3]]
    for name, number, a, b in wrong[:5]:
        print(f"{mode}: {name}, operation {number}: {a} alone, {b} beside others")
    return {
        "mode": mode, "users": users, "operations": len(pairs), "recalls": watch.recalls,
        "foreign": watch.foreign, "wrong": len(wrong), "upkeeps": upkeep.rounds,
        "errors": want.errors + have.errors + upkeep.errors, "seconds": round(seconds, 2),
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(), default=8)
    parser.add_argument("--operations", type=whole(), default=50, help="of each user")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_seed()
    parser.add_threads(1)
    args = parser.parse_args(words)
    for mode in args.modes:
        row = compare(mode, args.users, args.operations, args.seed)
        print(row, flush=True)
        rows.append("stress", {**rows.conditions(None, args.seed, memory=SETTINGS), **row})


if __name__ == "__main__":
    run(main)
