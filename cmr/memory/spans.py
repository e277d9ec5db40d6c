"""Which blocks hold a span of text, in a store or in a saved memory.

Letters in any case, in whichever form Unicode writes them, and however long white space is: whoever
wants something forgotten has mostly read it somewhere else, and a doubt is resolved by forgetting.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cmr.errors import CorruptMemoryError
from cmr.memory.block_store import BlockStore
from cmr.memory.store import Saved

# Tokens that one stretch of white space may be, where its length does not matter.
GAP = 8


def holding(
    blocks: BlockStore, session: int | None, span: str | Sequence[int], tokenizer: Any
) -> torch.Tensor:
    """Slots `[n]` of the blocks of a session (None: of any) that a span lies in."""
    slots = blocks.ledger.slots_of(session)
    ledger = blocks.ledger
    columns = {**blocks.about(slots), "session": ledger.owner[slots]}
    found = standing(columns, ledger.number[slots], span, tokenizer)
    return slots[found].sort().values


def standing(
    columns: Mapping[str, torch.Tensor],
    numbers: torch.Tensor,
    span: str | Sequence[int],
    tokenizer: Any,
) -> torch.Tensor:
    """Positions `[k]` of the blocks that a span lies in; of `n` blocks and numbers.

    CorruptMemoryError where `before` puts them in no order, as it may in a file.
    """
    if isinstance(span, str):
        holds, longest = _of_text(span, tokenizer.decode)
    else:
        wanted, longest = list(span), len(span)

        def holds(ids: list[int]) -> bool:
            return any(ids[i : i + longest] == wanted for i in range(len(ids) - longest + 1))

    found = _found(columns, _all_runs(numbers, _before(columns, numbers)), holds, longest)
    return torch.tensor(found, dtype=torch.int64)


def holding_saved(
    saved: Saved, wanted: torch.Tensor, span: str, decode: Callable[[list[int]], str]
) -> torch.Tensor:
    """Which blocks of a saved memory, of those `wanted`, a span of text lies in, `[n]` bool."""
    chosen = wanted.nonzero()[:, 0]
    columns = {name: column[chosen] for name, column in saved.columns.items()}
    columns["session"] = saved.session[chosen]
    numbers = saved.numbers[chosen]
    runs = _all_runs(numbers, _before(columns, numbers))
    at = _found(columns, runs, *_of_text(span, decode))
    found = torch.zeros(len(saved), dtype=torch.bool)
    found[chosen[torch.tensor(at, dtype=torch.int64)]] = True
    return found


def flat(text: str) -> str:
    """A text as spans are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _of_text(
    span: str, decode: Callable[[list[int]], str]
) -> tuple[Callable[[list[int]], bool], int]:
    """Says of token ids whether they hold a span; and the tokens that one may have at most."""
    wanted = flat(span)
    # A token is a byte at least, of a text in either form.
    longest = max(len(text.encode()) for text in (wanted, span)) + GAP * wanted.count(" ")
    return lambda ids: wanted in flat(decode(ids)), longest


def _before(columns: Mapping[str, torch.Tensor], numbers: torch.Tensor) -> torch.Tensor:
    """Number of the block in front of each; by place in the text where no link says it."""
    own, before = numbers.tolist(), columns["before"].tolist()
    known, sessions = set(own), columns["session"].tolist()
    positions = columns["positions"]
    last = positions.amax(1).tolist()
    first = positions.where(positions >= 0, torch.iinfo(torch.int64).max).amin(1).tolist()
    ends = {
        (session, end): number for session, end, number in zip(sessions, last, own, strict=True)
    }
    taken = known.intersection(before)
    for i, number in enumerate(before):
        near = ends.get((sessions[i], first[i] - 1))
        if number not in known and near is not None and near not in taken:
            before[i] = near
            taken.add(near)
    return torch.tensor(before, dtype=torch.int64)


def _all_runs(numbers: torch.Tensor, before: torch.Tensor) -> list[list[int]]:
    runs = _runs(numbers, before)
    # What was saved may say anything: a circle of blocks would be in no run.
    if sum(map(len, runs)) != len(numbers):
        raise CorruptMemoryError("'before' does not put the blocks in an order")
    return runs


def _runs(numbers: torch.Tensor, before: torch.Tensor) -> list[list[int]]:
    """Positions of consecutive blocks, in the order of the text; `before`: numbers likewise."""
    own, ahead = numbers.tolist(), before.tolist()
    known = set(own)
    behind = {number: i for i, number in enumerate(ahead) if number in known}
    found = []
    for i, number in enumerate(ahead):
        if number not in known:
            run = [i]
            while own[run[-1]] in behind:
                run.append(behind[own[run[-1]]])
            found.append(run)
    return found


def _found(
    columns: Mapping[str, torch.Tensor],
    runs: list[list[int]],
    holds: Callable[[list[int]], bool],
    longest: int,
) -> list[int]:
    """Positions of blocks that `holds` finds an occurrence in, of at most `longest` tokens."""
    ids, held = columns["token_ids"], columns["positions"] >= 0
    found: set[int] = set()
    for run in runs:
        texts = [ids[at][held[at]].tolist() for at in run]
        found.update(run[i] for i in _within(texts, holds, longest))
    return sorted(found)


def _within(
    blocks: list[list[int]], holds: Callable[[list[int]], bool], longest: int
) -> Iterator[int]:
    """Blocks of each occurrence: the fewest in a row that hold it."""

    def joined(first: int, last: int) -> list[int]:
        return [token for block in blocks[first : last + 1] for token in block]

    first = 0
    while first < len(blocks):
        last, held = first, 0
        while last < len(blocks) and not holds(joined(first, last)):
            held += len(blocks[last])
            if held - len(blocks[first]) >= longest:
                last = len(blocks)
            else:
                last += 1
        if last < len(blocks):
            while first < last and holds(joined(first + 1, last)):
                first += 1
            yield from range(first, last + 1)
        first += 1
