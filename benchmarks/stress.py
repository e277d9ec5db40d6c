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

import argparse
import asyncio
import contextvars
import queue
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks import rows

VOCABULARY = 200
SETTINGS: dict[str, Any] = {
    "window": 48,
    "block_size": 8,
    "budget": 2_048,
    "working_budget": 65_536,
    "threshold": 0.0,
    "refresh": 1,
}
"""A small first tier, so that blocks sink and rise; a search at every token."""
EXPECTED = (cmr.CMRError, ValueError)
"""What an operation may raise; anything else is an error of the library."""

Answer = list[Any]


def tiny() -> Any:
    """A random Llama of four layers, always the same."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        bos_token_id=1, eos_token_id=None, pad_token_id=0, initializer_range=0.15,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


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


class Outcome:
    """Answers of each user, and what went wrong."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.errors: list[str] = []

    def note(self, user: User, operate: Callable[[], Answer]) -> None:
        """Do an operation and keep its answer; a typed error is an answer, too."""
        try:
            answer = operate()
        except EXPECTED as error:
            answer = [type(error).__name__]
        except Exception as error:
            answer = [f"{type(error).__name__}: {error}"]
            self.errors.append(f"{user.name}: {answer[0]}")
        self.answers.setdefault(user.name, []).append(answer)


def last_of(steps: Iterator[Answer]) -> Answer:
    """What an operation gives in the end."""
    answer: Answer = []
    for answer in steps:  # noqa: B007
        pass
    return answer


def alone(users: list[User], operations: int) -> Outcome:
    """One user after the other, in one thread."""
    out = Outcome()
    for user in users:
        for _ in range(operations):
            out.note(user, lambda user=user: last_of(user.next()))
    return out


def in_threads(users: list[User], operations: int) -> Outcome:
    """A thread a user."""
    out = Outcome()

    def work(user: User) -> None:
        for _ in range(operations):
            out.note(user, lambda: last_of(user.next()))

    threads = [threading.Thread(target=work, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def in_tasks(users: list[User], operations: int) -> Outcome:
    """A task a user; every other operation runs in a thread that inherits the task's context."""
    out = Outcome()

    async def work(user: User) -> None:
        with user.memory.session(user.name):
            for number in range(operations):
                await asyncio.sleep(0)
                if number % 2:
                    await asyncio.to_thread(out.note, user, lambda: last_of(user.next()))
                    continue
                steps, answer = user.next(), []
                try:
                    for answer in steps:  # noqa: B007
                        await asyncio.sleep(0)
                except EXPECTED as error:
                    answer = [type(error).__name__]
                out.answers.setdefault(user.name, []).append(answer)

    async def everybody() -> None:
        await asyncio.gather(*(work(user) for user in users))

    asyncio.run(everybody())
    return out


def in_turns(users: list[User], operations: int) -> Outcome:
    """Generators in one thread, each driven by one step in its turn."""
    out = Outcome()

    def work(user: User) -> Iterator[None]:
        for _ in range(operations):
            steps, answer = user.next(), []
            while True:
                try:
                    answer = next(steps)
                except StopIteration:
                    break
                except EXPECTED as error:
                    answer = [type(error).__name__]
                    break
                yield
            out.answers.setdefault(user.name, []).append(answer)

    going = [work(user) for user in users]
    while going:
        for one in list(going):
            try:  # each in a copy of the context, as web frameworks drive them
                contextvars.copy_context().run(next, one)
            except StopIteration:
                going.remove(one)
    return out


MODES = {"threads": in_threads, "tasks": in_tasks, "turns": in_turns}


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


def run(mode: str, users: int, operations: int, seed: int = 0) -> dict[str, Any]:
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--operations", type=int, default=50, help="of each user")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for mode in args.modes:
        row = run(mode, args.users, args.operations, args.seed)
        print(row, flush=True)
        rows.append("stress", {**rows.conditions(None, args.seed, memory=SETTINGS), **row})


if __name__ == "__main__":
    main()
