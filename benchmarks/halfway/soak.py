"""A long stream through a memory in which everything fails again and again: is it still the same?

The stream is read in twenty parts through three tiers, of which the last lies in files. After each
part a question is asked with every kind of fault, one after the other: a strategy of somebody's
raises; memory runs out while the layers read; a tier cannot be read; the disk is full when the
request is to become memory; stored states are no numbers. Looked at each time: the answer is the
one that the model gives without recalling anything; `stats()["failures"]` counts exactly what was
raised; every byte of the store and every block is as before; and the next answer has its memory
again. Of the process what it takes is noted after each part: resident bytes, threads, open files.
At the end the memory is saved, emptied and loaded again, which verifies every file, and compared.

`resident_bytes_last_to_first` and its like: after the last part, over when the last tier began to
evict.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

import cmr
import cmr.integration.reweave.attention as attention
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.model import described, load_model
from benchmarks.texts.stream import make_stream
from benchmarks.users.stress import VOCABULARY, tiny
from cmr.integration.capture.block_writer import BlockWriter
from cmr.memory.block_store import BlockStore

PARTS = 20
SESSION = "reader"
ASKED, ANSWER = 40, 8
STRATEGY = "soak_raises"
TIERS = {"budget": 4_096, "working_budget": 4_096, "long_term_budget": 8_192}
Injected = Counter[tuple[str, str]]
"""How often each stage was made to fail, by the name of the error."""


class Raises:
    """A strategy of somebody's that is broken."""

    def __init__(self, injected: Injected) -> None:
        self.injected = injected

    def score(self, ask: Any, store: Any) -> Any:
        self.injected["search", "LookupError"] += 1
        raise LookupError("broken")


class Soak:
    """A memory, and the faults that are put into it.

    Args:
        memory: attached; its session `SESSION` is what is asked.
        ids: of the stream.
    """

    def __init__(self, memory: Any, ids: torch.Tensor) -> None:
        self.memory, self.ids = memory, ids
        self.injected: Injected = Counter()
        cmr.register_strategy(STRATEGY, lambda _: Raises(self.injected))
        self.faults: dict[str, Callable[[], Any]] = {
            "a strategy raises": lambda: self.memory.retrieval(strategy=STRATEGY),
            "out of memory": lambda: self.broken(
                attention, "reweave_attention", "read", torch.OutOfMemoryError("no memory")
            ),
            "a tier cannot be read": lambda: self.broken(
                BlockStore, "gather", "read", OSError(errno.EIO, "input/output error")
            ),
            "the disk is full": lambda: self.broken(
                BlockWriter, "write", "store", OSError(errno.ENOSPC, "no space left")
            ),
            "states are no numbers": self.damaged,
        }

    @contextmanager
    def broken(self, owner: Any, name: str, stage: str, error: Exception) -> Iterator[None]:
        """A function that raises."""

        def fail(*_: Any, **__: Any) -> Any:
            self.injected[stage, type(error).__name__] += 1
            raise error

        with mock.patch.object(owner, name, fail):
            yield

    @contextmanager
    def damaged(self) -> Iterator[None]:
        """The keys of one layer are no numbers in the first tier, as after a bad copy."""
        keys = next(iter(self.memory._core.ring.keys.values()))
        before = keys.clone()
        keys.fill_(float("nan"))
        try:
            yield
        finally:
            keys.copy_(before)

    def answer(self, at: int) -> torch.Tensor:
        """The greedy answer to tokens of the stream from `at` on."""
        asked = self.ids[None, at : at + ASKED]
        said = self.memory.session(SESSION).generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=ANSWER,
            min_new_tokens=ANSWER, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack(said.logits)

    def held(self) -> str:
        """A digest of every byte of the store, and of which block is where."""
        digest = hashlib.blake2b()
        for part in self.memory._core.ring.parts:
            for tensor in part.values():
                digest.update(tensor.detach().contiguous().view(torch.uint8).numpy())
        digest.update(texts(self.memory).encode())
        return digest.hexdigest()

    def round(self, at: int) -> list[str]:
        """Asks once with each fault; what was not as it should be."""
        wrong: list[str] = []
        with self.memory.retrieval(blocks=0):
            alone = self.answer(at)
        right, before = self.answer(at), self.held()
        if torch.equal(alone, right):
            wrong.append("memory changes nothing here: a fault would not be seen")
        for name, fault in self.faults.items():
            with fault():
                faulty = self.answer(at)
            # What cannot be stored has been read all the same.
            wanted = right if name == "the disk is full" else alone
            if not torch.equal(faulty, wanted):
                wrong.append(f"{name}: another answer")
            if self.held() != before:
                wrong.append(f"{name}: the store changed")
        if not torch.equal(self.answer(at), right):
            wrong.append("the next answer is another one")
        return wrong


def texts(memory: Any) -> str:
    """Which blocks there are, of whom, where in their text, and their tokens."""
    found = memory.inspect(SESSION, order="position")
    return repr([(b.session, b.start, b.end, b.token_ids) for b in found])


def saved_and_loaded(soak: Soak, at: int) -> list[str]:
    """Saves the memory, which checks of every byte are written with, empties it and loads it."""
    memory, before, right = soak.memory, texts(soak.memory), soak.answer(at)
    with tempfile.TemporaryDirectory() as folder:
        memory.save(folder)
        memory.clear()
        # Every file is verified before anything of it is taken.
        memory.load(folder)
    wrong = [] if texts(memory) == before else ["saved and loaded: other blocks"]
    return wrong + ([] if torch.equal(soak.answer(at), right) else ["loaded: another answer"])


def process() -> dict[str, int]:
    """What this process takes by now."""
    import psutil

    own = psutil.Process()
    return {
        "resident_bytes": own.memory_info().rss,
        "threads": own.num_threads(),
        "descriptors": own.num_fds(),
    }


def soak_through(memory: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Reads the stream part by part, with faults behind each: the fields of a row."""
    soak, wrong, parts = Soak(memory, ids), list[str](), list[dict[str, Any]]()
    for number, part in enumerate(ids.chunk(PARTS)):
        began = time.perf_counter()
        memory.read(part, sessions=[SESSION])
        # From the middle of what was read last: it is stored, whatever else has left.
        found = soak.round(number * len(ids.chunk(PARTS)[0]) + len(part) // 2)
        wrong += [f"part {number + 1}: {what}" for what in found]
        parts.append({
            **process(), "stored_tokens": memory.tokens,
            "evicted_blocks": memory.stats()["evicted_blocks"],
            "seconds": round(time.perf_counter() - began, 1),
        })  # fmt: skip
        print(parts[-1], *found, flush=True)
    counted = {
        (stage, kind): times
        for stage, kinds in memory.stats()["failures"].items() for kind, times in kinds.items()
    }  # fmt: skip
    # Nobody raised these: they were found by the memory, at least once a round.
    numbers = counted.pop(("read", "NonFiniteStateError"), 0)
    if counted != dict(soak.injected) or numbers < PARTS:
        wrong.append(f"counted {counted} and {numbers}, injected {dict(soak.injected)}")
    wrong += saved_and_loaded(soak, len(ids) - ASKED - 1)
    full = [part for part in parts if part["evicted_blocks"]] or parts[-1:]
    return {
        "tokens": len(ids), "parts": parts, "wrong": wrong,
        "answers": PARTS * (3 + len(soak.faults)), "faults": PARTS * len(soak.faults),
        "injected": {": ".join(kind): times for kind, times in sorted(soak.injected.items())},
        "non_finite": numbers,
        **{
            f"{name}_last_to_first": full[-1][name] / full[0][name]
            for name in ("resident_bytes", "threads", "descriptors")
        },
    }  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Command line; the exit code says whether anything was wrong."""
    parser = Parser(__doc__)
    parser.add_argument("--tokens", type=whole(PARTS * 200), default=200_000)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny random model: what depends on memory alone"
    )
    parser.add_model()
    parser.add_seed()
    parser.add_threads()
    args = parser.parse_args(words)
    if args.tiny:
        model = tiny()
        generator = torch.Generator().manual_seed(args.seed)
        ids = torch.randint(3, VOCABULARY, (args.tokens,), generator=generator)
    else:
        model, tokenizer = load_model(args.model)
        ids = torch.tensor(make_stream(tokenizer, args.tokens, args.seed).ids)[: args.tokens]
    with tempfile.TemporaryDirectory() as folder:
        settings = {**TIERS, "long_term_store": "kv", "long_term_folder": folder, "threshold": 0.0}
        with cmr.attach(model, **settings) as memory:
            about = {k: v for k, v in described(memory).items() if k != "long_term_folder"}
            row = {**rows.conditions(model, args.seed, memory=about), **soak_through(memory, ids)}
    rows.append("soak", row)
    print({k: row[k] for k in ("wrong", "injected", "non_finite", "resident_bytes_last_to_first")})
    return 1 if row["wrong"] else 0


if __name__ == "__main__":
    run(main)
