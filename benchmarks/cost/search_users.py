"""A search of a batch among many users, each row in its own user's text alone: milliseconds.

As many users as wanted have stored a text each, in one turn or in several, so that their blocks lie
side by side or among the others'; the rows of a batch are so many of these users. `prompt`
is the search that a question begins with, of which everything is compared; `step` one of those
every 16 tokens while it is answered, the new tokens' comparison included. The default search with
the model's tokenizer, on the CPU. Stored are real tokens with states that were drawn: how long a
search takes does not depend on what they say. `cpu_ms` is this process's processor time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, run, whole
from benchmarks.shared.stats import quantiles
from benchmarks.texts.needle import QUESTION
from cmr.config import RetrievalConfig
from cmr.demo.conversion import quick_dtype
from cmr.demo.smollm2 import load_smollm2
from cmr.demo.text import reference_text
from cmr.memory import BlockBatch, BlockStore
from cmr.retrieval import Ask, Retriever, RollingQuery, Vocabulary

WIDTH, BLOCK, NEW = 576, 32, 16
CPU = torch.device("cpu")


def stored(
    ids: torch.Tensor, users: int, blocks: int, turns: int, dtype: torch.dtype
) -> BlockStore:
    """A store in which every user has so many blocks of tokens from `ids`.

    In as many turns as said: in one, each user's blocks lie side by side; in as many as there are
    blocks, no two do.
    """
    store = BlockStore(
        slots=users * blocks, block_size=BLOCK, hidden=WIDTH, layers={}, index_dtype=dtype,
        device=CPU,
    )  # fmt: skip
    each = blocks // turns
    for turn in range(turns):
        owners = [user for user in range(users) for _ in range(each)]
        first = torch.randint(len(ids) - BLOCK, (len(owners), 1))
        states = torch.randn(len(owners), BLOCK, WIDTH, dtype=dtype)
        places = torch.arange(turn * each * BLOCK, (turn + 1) * each * BLOCK).view(each, BLOCK)
        texts = ids[first + torch.arange(BLOCK)]
        store.add(BlockBatch(owners, texts, places.repeat(users, 1), states, {}))
    return store


class Asked:
    """The searches of a batch: that of its prompt, and those of the steps behind it.

    Args:
        store: that is searched.
        vocabulary: of the tokens.
        question: `[tokens]` that every row asks.
        batch: how many rows.
    """

    def __init__(
        self, store: BlockStore, vocabulary: Vocabulary, question: torch.Tensor, batch: int
    ) -> None:
        self._store = store
        self._retriever = Retriever(RetrievalConfig(threshold=0.0), vocabulary=vocabulary)
        self._ids = question.repeat(batch, 1)
        self._mask = torch.ones_like(self._ids, dtype=torch.bool)
        self._parts = vocabulary.parts(self._ids, self._mask)
        users = int(store.session.max()) + 1
        self._sessions = torch.arange(batch) * (users // batch)
        self._query = RollingQuery(
            batch, NEW, store, self._sessions, True, None, self._ask(), self._retriever.narrows
        )

    def prompt(self) -> None:
        """The search of the question."""
        self._hold(self._retriever.search(self._ask(), self._store))

    def step(self) -> None:
        """The next search while it is answered."""
        rows = len(self._ids)
        states = self._states[:, :1].expand(-1, NEW, -1) + 0.5 * torch.randn(rows, NEW, WIDTH)
        ids = self._ids[:, torch.randint(self._ids.shape[1], (NEW,))]
        self._query.add(torch.nn.functional.normalize(states, dim=-1), None, ids)
        self._hold(self._retriever.search_again(self._query, self._store))

    def _hold(self, choice: Any) -> None:
        held = self._store.session[choice.table.clamp(min=0)]
        own = (choice.table < 0) | (held == self._sessions[:, None, None])
        if not bool(own.all()) or not bool((choice.table >= 0).flatten(1).any(-1).all()):
            raise RuntimeError("blocks of its own session expected for every row")

    def _ask(self) -> Ask:
        # New ones each time: an ask keeps what was compared.
        self._states = torch.randn(*self._ids.shape, WIDTH)
        return Ask(
            states=self._states, mask=self._mask, sessions=self._sessions, token_ids=self._ids,
            located=True, parts=self._parts,
        )  # fmt: skip


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Milliseconds of a call, by the clock and by the processor."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - cpu)


@torch.inference_mode()
def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("--users", type=whole(), default=512)
    parser.add_argument("--tokens", type=whole(BLOCK), default=1024, help="of each user")
    parser.add_argument(
        "--turns", type=whole(), nargs="+", default=[1, 32], help="in which each text came"
    )
    parser.add_argument("--batch", type=whole(), default=16)
    parser.add_argument("--rounds", type=whole(), default=60)
    parser.add_threads(1)
    parser.add_seed()
    args = parser.parse_args(words)
    if args.users < args.batch:
        parser.error(f"argument --users: {args.batch} at least expected, got {args.users}")
    blocks = args.tokens // BLOCK
    uneven = [turns for turns in args.turns if blocks % turns]
    if uneven:
        parser.error(f"argument --turns: divisors of {blocks} blocks expected, got {uneven}")
    tokenizer = load_smollm2()[1]
    vocabulary = Vocabulary.of(tokenizer, CPU)
    assert vocabulary is not None
    text, asked = (
        tokenizer(t, return_tensors="pt").input_ids[0] for t in (reference_text(), QUESTION)
    )
    dtype = quick_dtype()
    for turns in args.turns:
        torch.manual_seed(args.seed)
        store = stored(text, args.users, blocks, turns, dtype)
        searches = Asked(store, vocabulary, asked, args.batch)
        spent: dict[str, list[tuple[float, float]]] = {"prompt": [], "step": []}
        for number in range(args.rounds + 3):
            for name, times in spent.items():
                times.append(timed(getattr(searches, name)))
                if number < 3:  # what is made once
                    times.clear()
        row: dict[str, Any] = {
            "dtype": str(dtype)[6:], "width": WIDTH, "users": args.users,
            "tokens_each": args.tokens, "turns": turns, "batch": args.batch,
            "question": len(asked), "rounds": args.rounds,
        }  # fmt: skip
        for name, times in spent.items():
            by_clock, by_cpu = zip(*times, strict=True)
            row[name] = {"ms": quantiles(by_clock), "cpu_ms": quantiles(by_cpu)}
            said = f"{row[name]['ms']['p50']:.2f} ms, cpu {row[name]['cpu_ms']['p50']:.2f}"
            print(f"{turns:2} turns, {name}: {said}", flush=True)
        rows.append("search_users", {**rows.conditions(seed=args.seed), **row})


if __name__ == "__main__":
    run(main)
