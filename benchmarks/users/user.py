"""Somebody who uses a memory, always in the same way."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import cmr

VOCABULARY = 200

Answer = list[Any]


class Streamer:
    """Takes tokens of a `generate` that runs in a thread of its own."""

    def __init__(self) -> None:
        self._tokens: queue.Queue[int | None] = queue.Queue()

    def put(self, value: torch.Tensor) -> None:
        """Take tokens."""
        for token in value.flatten().tolist():
            self._tokens.put(token)

    def end(self) -> None:
        """The answer is over."""
        self._tokens.put(None)

    def __iter__(self) -> Iterator[int]:
        while (token := self._tokens.get(timeout=120)) is not None:
            yield token


class User:
    """Somebody who does things, always the same ones, and notes what came of them.

    Args:
        memory: the memory.
        model: that it is attached to.
        name: of the user's session.
        seed: of what it does.
        folder: where it may save.
    """

    def __init__(self, memory: cmr.Memory, model: Any, name: str, seed: int, folder: Path) -> None:
        self.memory, self.model, self.name, self.folder = memory, model, name, folder
        self.session = memory.session(name, create=True)
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self.kinds = [getattr(self, name) for name in dir(self) if name.startswith("op_")]
        self._mentioned = 0

    def begin(self) -> None:
        """A first text, so that there is something to find."""
        self.session.read(self.text(200))

    def text(self, tokens: int) -> torch.Tensor:
        """Random token ids, `[1, tokens]`."""
        return torch.randint(3, VOCABULARY, (1, tokens), generator=self._generator)

    def next(self) -> Iterator[Answer]:
        """The next operation; what it gives last is its answer, all before are pauses."""
        kind = self._random.choice(self.kinds)
        yield from kind()

    # -- operations ------------------------------------------------------------------------------

    def op_greedy(self) -> Iterator[Answer]:
        ids = self.text(20)
        yield self.session.generate(ids, max_new_tokens=6, do_sample=False)[0].tolist()

    def op_within(self) -> Iterator[Answer]:
        """Said by what surrounds the request; there is no `yield` inside."""
        ids = self.text(12)
        with self.memory.session(self.name):
            out = self.model.generate(ids, max_new_tokens=6, do_sample=False)
            said = [sorted({p.session for row in self.memory.recalled for p in row})]
        yield out[0].tolist() + said

    def op_long(self) -> Iterator[Answer]:
        """A prompt that overflows the window, and so becomes memory."""
        ids = self.text(80)
        yield self.session.generate(ids, max_new_tokens=4, do_sample=False)[0].tolist()

    def op_sampled(self) -> Iterator[Answer]:
        ids = self.text(20)
        options = {"do_sample": True, "top_k": 1, "temperature": 0.7}
        yield self.session.generate(ids, max_new_tokens=6, **options)[0].tolist()

    def op_beams(self) -> Iterator[Answer]:
        ids = self.text(16)
        options = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
        yield self.session.generate(ids, max_new_tokens=5, **options).tolist()

    def op_streamed(self) -> Iterator[Answer]:
        """In a thread of its own, its tokens taken one by one."""
        streamer = Streamer()
        given = {"max_new_tokens": 6, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=self.session.generate, args=(self.text(20),), kwargs=given)
        thread.start()
        tokens: Answer = []
        for token in streamer:
            tokens.append(token)
            yield []
        thread.join()
        yield tokens

    def op_steps(self) -> Iterator[Answer]:
        """By hand, token by token, with others in between."""
        out = self.session.forward(self.text(20), use_cache=True)
        tokens: Answer = []
        for _ in range(6):
            token = out.logits[:, -1:].argmax(-1)
            tokens.append(int(token))
            yield []
            out = self.session.forward(token, past_key_values=out.past_key_values)
        yield tokens

    def op_read(self) -> Iterator[Answer]:
        report = self.session.read(self.text(60), recall=self._random.random() < 0.3)
        yield [report.tokens, report.blocks]

    def op_search(self) -> Iterator[Answer]:
        found = self.session.search(self.text(12)[0], blocks=2)
        yield [(p.start, p.end, p.token_ids, p.session) for p in found]

    def op_forget(self) -> Iterator[Answer]:
        blocks = self.session.inspect()
        if len(blocks) < 8:
            yield []
            return
        block = blocks[self._random.randrange(len(blocks))]
        report = self.session.forget(ids=block.id, files=False)
        yield [report.blocks, report.tokens, block.token_ids]

    def op_save(self) -> Iterator[Answer]:
        self.folder.mkdir(exist_ok=True)
        report = self.memory.save(self.folder / self.name, sessions=[self.name])
        yield [report.blocks, len(self.session.inspect())]

    def op_fork(self) -> Iterator[Answer]:
        """Another session with the same text answers the same, and is forgotten again."""
        other, ids = f"{self.name}, forked", self.text(12)
        copied = self.memory.fork(self.name, other)
        yield []
        fork = self.memory.session(other)
        said = fork.generate(ids, max_new_tokens=4, do_sample=False)[0].tolist()
        read = sorted({p.session == other for row in fork.recalled for p in row})
        self.memory.forget(other)
        yield [copied, *said, read]

    def op_settings(self) -> Iterator[Answer]:
        ids = self.text(16)
        with self.memory.session(self.name), self.memory.retrieval(blocks=1, neighbours=0):
            out = self.model.generate(ids, max_new_tokens=5, do_sample=False)
        yield out[0].tolist()

    def op_change(self) -> Iterator[Answer]:
        """For everybody, and such that it changes nobody's answers."""
        self.memory.change(relevance_threshold=self._random.choice([None, 0.0]))
        yield []

    def op_paused(self) -> Iterator[Answer]:
        ids = self.text(16)
        with self.memory.paused():
            out = self.model.generate(ids, max_new_tokens=5, do_sample=False)
        yield out[0].tolist()
