"""A long stream through a memory in which everything fails again and again: is it still the same?

The stream is read in twenty parts through three tiers, of which the last lies in files. After each
part a question is asked with every kind of fault, one after the other: a strategy of somebody's
raises; memory runs out while the layers read; a tier cannot be read; stored states are no numbers;
and a prompt longer than the window is given while the disk is full. Looked at each time: the answer
is the one that the model gives without recalling anything; exactly that failure is counted in
`stats()["failures"]`; every byte of the store and every block is as before; and the next answer has
its memory again. Of the process what it takes is noted after each part: resident bytes, threads,
open files. At the end the memory is saved, emptied and loaded again, which verifies every file, and
compared.

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
from contextlib import ExitStack, contextmanager
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
SESSION, WRITER = "reader", "writer"
ASKED, ANSWER, BEYOND = 40, 8, 80
STRATEGY = "soak_raises"
TIERS = {"budget": 4_096, "working_budget": 4_096, "long_term_budget": 8_192}
Failures = Counter[tuple[str, str]]
"""How often each stage was left out of a request, by the name of the error."""


class Raises:
    """A strategy of somebody's that is broken."""

    def score(self, ask: Any, store: Any) -> Any:
        raise LookupError("broken")


class Soak:
    """A memory, and the faults that are put into it.

    Args:
        memory: attached; its session `SESSION` is what is asked.
        ids: of the stream.
    """

    def __init__(self, memory: Any, ids: torch.Tensor) -> None:
        self.memory, self.ids = memory, ids
        self.counted: Failures = Counter()
        cmr.register_strategy(STRATEGY, lambda _: Raises())
        no_room, no_tier = torch.OutOfMemoryError("no memory"), OSError(errno.EIO, "no answer")
        self.faults: dict[str, tuple[tuple[str, str], Callable[[], Any]]] = {
            "a strategy raises": (
                ("search", "LookupError"), lambda: memory.retrieval(strategy=STRATEGY),
            ),
            "out of memory": (
                ("read", "OutOfMemoryError"),
                lambda: broken(no_room, (attention, "reweave_attention")),
            ),
            "a tier cannot be read": (
                ("read", "OSError"),
                lambda: broken(no_tier, (BlockStore, "gather"), (BlockStore, "gather_anywhere")),
            ),
            "states are no numbers": (("read", "NonFiniteStateError"), self.damaged),
        }  # fmt: skip

    def failures(self) -> Failures:
        """What the memory has counted by now."""
        found = self.memory.stats()["failures"]
        return Counter({(s, kind): n for s, kinds in found.items() for kind, n in kinds.items()})

    @contextmanager
    def damaged(self) -> Iterator[None]:
        """The keys of one layer are no numbers in any tier, as after a bad copy."""
        ring = self.memory._core.ring
        keys = [part[f"keys.{next(iter(ring.keys))}"] for part in ring.parts]
        before = [one.clone() for one in keys]
        for one in keys:
            one.fill_(float("nan"))
        try:
            yield
        finally:
            for one, was in zip(keys, before, strict=True):
                one.copy_(was)

    def place(self, number: int) -> int:
        """Where in the stream a part's question stands: of late, or in what goes next."""
        blocks = self.memory.inspect(SESSION, order="position")
        return int(blocks[-4 if number % 2 else len(blocks) // 8].start)

    def answer(self, at: int) -> torch.Tensor:
        """What is said to tokens of the stream from `at` on."""
        return self.said(SESSION, self.ids[None, at : at + ASKED])

    def said(self, session: str, ids: torch.Tensor) -> torch.Tensor:
        """The logits of a greedy answer, `[tokens, 1, vocabulary]`."""
        said = self.memory.session(session, create=True).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER,
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
        for name, (kind, fault) in self.faults.items():
            counted = self.failures()
            with fault():
                faulty = self.answer(at)
            wrong += self.looked(name, kind, counted, torch.equal(faulty, alone), before)
        if not torch.equal(self.answer(at), right):
            wrong.append("the next answer is another one")
        # Last: what it stores once it can takes the place of something older.
        return wrong + self.full_disk(self.held())

    def full_disk(self, before: str) -> list[str]:
        """A prompt that is longer than the window, of which nothing can be stored."""
        ids = self.ids[None, : self.memory.config.window + BEYOND]
        counted = self.failures()
        with self.memory.retrieval(blocks=0):
            with broken(OSError(errno.ENOSPC, "no space left"), (BlockWriter, "write")):
                faulty = self.said(WRITER, ids)
            # Before it is stored after all: nothing came of the first one.
            wrong = self.looked("the disk is full", ("store", "OSError"), counted, True, before)
            again = self.said(WRITER, ids)
        if not torch.equal(faulty, again):
            wrong.append("the disk is full: another answer")
        if not self.memory.inspect(WRITER):
            wrong.append("the disk has room again: nothing was stored")
        self.memory.forget(WRITER)
        return wrong

    def looked(
        self, name: str, kind: tuple[str, str], counted: Failures, same: bool, before: str
    ) -> list[str]:
        """What of a fault was not as it should be; `counted` and `before` are of in front of it."""
        risen = self.failures() - counted
        self.counted += risen
        return [
            f"{name}: {what}"
            for what, right in (
                ("another answer", same),
                (f"counted {dict(risen)}", set(risen) == {kind}),
                ("the store changed", self.held() == before),
            )
            if not right
        ]


@contextmanager
def broken(error: Exception, *functions: tuple[Any, str]) -> Iterator[None]:
    """Functions that raise."""

    def fail(*_: Any, **__: Any) -> Any:
        # A new one each time: an error keeps the frames that it went through, and what they hold.
        raise type(error)(*error.args)

    with ExitStack() as patched:
        for owner, name in functions:
            patched.enter_context(mock.patch.object(owner, name, fail))
        yield


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
    # The tokens: blocks lie in other places now, and sums in another order have other last bits.
    same = torch.equal(soak.answer(at).argmax(-1), right.argmax(-1))
    return wrong + ([] if same else ["loaded: another answer"])


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
        found = soak.round(soak.place(number))
        wrong += [f"part {number + 1}: {what}" for what in found]
        parts.append({
            **process(), "stored_tokens": memory.tokens,
            "evicted_blocks": memory.stats()["evicted_blocks"],
            "seconds": round(time.perf_counter() - began, 1),
        })  # fmt: skip
        print(parts[-1], *found, flush=True)
    wrong += saved_and_loaded(soak, soak.place(1))
    full = [part for part in parts if part["evicted_blocks"]] or parts[-1:]
    return {
        "tokens": len(ids), "parts": parts, "wrong": wrong,
        "faults": PARTS * (len(soak.faults) + 1),
        "counted": {": ".join(kind): times for kind, times in sorted(soak.counted.items())},
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
            about = described(memory)
            # Where the system puts its temporary files is no condition.
            about["memory"]["long_term_folder"] = "a temporary one"
            row = {**rows.conditions(model, args.seed, memory=about), **soak_through(memory, ids)}
    rows.append("soak", row)
    print({k: row[k] for k in ("wrong", "counted", "resident_bytes_last_to_first")})
    return 1 if row["wrong"] else 0


if __name__ == "__main__":
    run(main)
