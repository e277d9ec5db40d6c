"""Which blocks hold a span of text, in a store or in a saved memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cmr.errors import CorruptMemoryError
from cmr.memory.block_store import BlockStore
from cmr.memory.store import Saved

GAP = 8
"""Tokens that one stretch of white space may be, where its length does not matter."""


def runs(blocks: BlockStore, session: int | None) -> Iterator[list[int]]:
    """Slots of consecutive blocks of a session, or of each, in the order of the text."""
    slots = blocks.ledger.slots_of(session).tolist()
    successor, predecessor = blocks.successor.cpu(), blocks.predecessor.cpu()
    for slot in slots:
        if predecessor[slot] < 0:
            run = [slot]
            while successor[run[-1]] >= 0:
                run.append(int(successor[run[-1]]))
            yield run


def tokens_of(blocks: BlockStore, slots: Sequence[int]) -> list[int]:
    """Token ids of blocks, without padding, joined."""
    at = torch.tensor(slots, device=blocks.device)
    held = blocks.positions[at] >= 0
    ids: list[int] = blocks.token_ids[at][held].tolist()
    return ids


def holding(
    blocks: BlockStore, session: int | None, span: str | Sequence[int], tokenizer: Any
) -> torch.Tensor:
    """Slots `[n]` of the blocks that a span of text lies in, wherever it occurs.

    Args:
        blocks: the store.
        session: whose blocks; None: everybody's.
        span: text, or token ids.
        tokenizer: decodes, for a text.
    """
    holds, longest = _exactly(span, tokenizer)
    found: set[int] = set()
    for run in runs(blocks, session):
        texts = [tokens_of(blocks, [slot]) for slot in run]
        found.update(run[i] for i in _within(texts, holds, longest))
    return torch.tensor(sorted(found), dtype=torch.int64)


def holding_saved(
    saved: Saved, wanted: torch.Tensor, span: str, decode: Callable[[list[int]], str]
) -> torch.Tensor:
    """Which blocks of a saved memory a span of text lies in, `[n]` bool.

    The case of letters and the length of white space do not matter, as whoever has only seen the
    text in a table cannot know them.

    Args:
        saved: the opened memory.
        wanted: `[n]` bool, the blocks to look in; a run of text ends where one is left out.
        span: the text, with something in it beside white space.
        decode: text of token ids.

    Raises:
        CorruptMemoryError: its blocks do not follow each other in runs.
    """
    holds, longest = _loosely(span, decode)
    ids, held = saved.columns["token_ids"], saved.columns["positions"] >= 0
    found = torch.zeros(len(saved), dtype=torch.bool)
    for run in _saved_runs(saved, wanted):
        texts = [ids[at][held[at]].tolist() for at in run]
        for i in _within(texts, holds, longest):
            found[run[i]] = True
    return found


def _saved_runs(saved: Saved, wanted: torch.Tensor) -> list[list[int]]:
    """Positions of consecutive blocks among those wanted, in the order of the text."""
    chosen = wanted.nonzero()[:, 0].tolist()
    numbers, before = saved.numbers.tolist(), saved.columns["before"].tolist()
    at = {numbers[i]: i for i in chosen}
    behind = {before[i]: i for i in chosen if before[i] in at}
    found = []
    for i in chosen:
        if before[i] not in at:
            run = [i]
            while numbers[run[-1]] in behind:
                run.append(behind[numbers[run[-1]]])
            found.append(run)
    if sum(map(len, found)) != len(chosen):
        raise CorruptMemoryError(f"{saved.path}: 'before' does not put its blocks in an order")
    return found


def _exactly(span: str | Sequence[int], tokenizer: Any) -> tuple[Callable[[list[int]], bool], int]:
    """Whether token ids hold a span, and the most tokens that an occurrence can have."""
    if isinstance(span, str):
        # A token is a byte of the span at least, so no occurrence is longer than that.
        return lambda ids: span in tokenizer.decode(ids), len(span.encode())
    wanted = list(span)
    last = len(wanted)
    return lambda ids: any(ids[i : i + last] == wanted for i in range(len(ids) - last + 1)), last


def _loosely(
    span: str, decode: Callable[[list[int]], str]
) -> tuple[Callable[[list[int]], bool], int]:
    """The same, whatever the case and the white space."""
    wanted = _flat(span)
    longest = len(wanted.encode()) + GAP * wanted.count(" ")
    return lambda ids: wanted in _flat(decode(ids)), longest


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


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
