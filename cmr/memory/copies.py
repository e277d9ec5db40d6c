"""Copying a session's blocks, and joining two sessions."""

from __future__ import annotations

import torch

from cmr.memory.block_store import BlockStore
from cmr.memory.keeper import Keeper
from cmr.memory.seen import grown
from cmr.memory.sessions import SessionInfo, SessionTable


def fork(keeper: Keeper, table: SessionTable, name: str, to: str) -> int:
    """See `Memory.fork`: room for the copy is made as for new text, by blocks of others.

    Nothing of the session copied goes for it; what finds no room in the tier of its original goes
    into a lower one.
    """
    source = table.info(table.require(name))
    table.check(to)
    if to in table.names():
        raise ValueError(f"there is a session named {to!r} already")
    table.check_room([to])
    blocks = keeper.blocks
    with blocks.journal.change():
        return _fork(keeper, table, source, to)


def _fork(keeper: Keeper, table: SessionTable, source: SessionInfo, to: str) -> int:
    blocks, ledger = keeper.blocks, keeper.blocks.ledger
    slots = ledger.slots_of(source.number)
    # Making room must not take the very blocks that are about to be copied.
    was_pinned = ledger.pinned[slots]
    blocks.journal.rows(ledger.pinned, slots)
    ledger.pinned[slots] = True
    newest = slots.flip(0)
    wanted = [newest[at.holds(newest)] for at in ledger.tiers]
    plan, left = keeper.plan(wanted, source.ephemeral)
    if left:
        raise ValueError(
            f"no room for a copy of {source.name!r}: room for {len(slots)} blocks expected, "
            f"for {len(slots) - left} it could be made"
        )
    number = table.create(to, source.ephemeral, source.ttl)
    numbers = blocks.new_numbers(len(slots))  # copies are as old as their originals, in turn
    # From the last tier up: what sinks must not take the room that was just made.
    for tier in reversed(range(len(plan))):
        part = plan[tier]
        if len(part):
            keeper.room_in(tier, {number: len(part)})
            fresh = numbers[torch.searchsorted(ledger.number[slots], ledger.number[part])]
            to_slots = blocks.take(tier, len(part))
            blocks.copy(part, to_slots, number, fresh, keeper.lifetime(number))
    ledger.pinned[slots] = was_pinned
    table.advance(number, source.position)
    table.note_adapters(number, source.adapters)
    # Whoever forgets or lets expire what was evicted there does not look here.
    table.note_texts(number, table.texts(source.number))
    table.keep_texts_at(number, blocks.places(slots))
    _chain(blocks, slots, source.number, number)
    return len(slots)


def _chain(blocks: BlockStore, slots: torch.Tensor, original: int, session: int) -> None:
    """Chain a session's blocks, which are copies, as their originals are."""
    # Original and copy end at the same position of the text: by that they find each other.
    last = blocks.positions.amax(dim=1).tolist()
    copies = {last[slot]: slot for slot in blocks.ledger.slots_of(session).tolist()}
    after = blocks.successor.tolist()
    pairs = [
        (copies[last[slot]], copies[last[after[slot]]])
        for slot in slots.tolist()
        if after[slot] >= 0 and last[slot] in copies and last[after[slot]] in copies
    ]
    for links in (blocks.successor, blocks.predecessor):
        blocks.journal.whole(links)
    ahead, behind = torch.tensor(pairs, dtype=torch.int64, device=blocks.device).view(-1, 2).t()
    blocks.successor[ahead], blocks.predecessor[behind] = behind, ahead
    # Where the newest block is gone, what comes next follows none: its text stands further behind.
    newest = blocks.ledger.newest(original)
    blocks.ledger.follow(session, copies.get(last[newest], -1) if newest >= 0 else -1)


def merge(blocks: BlockStore, table: SessionTable, name: str, into: str) -> int:
    """Put a session's text behind another one's and end it; see `Memory.merge`."""
    source, target = table.info(table.require(name)), table.info(table.require(into))
    if source.number == target.number:
        raise ValueError(f"two sessions expected, got {name!r} twice")
    if source.ephemeral != target.ephemeral:
        one = name if source.ephemeral else into
        raise ValueError(f"of {name!r} and {into!r} only {one!r} is ephemeral: they cannot be one")
    slots = blocks.ledger.slots_of(source.number)
    with blocks.journal.change():
        table.keep_texts_at(source.number, blocks.places(slots))
        texts = table.texts(target.number)
        for text in table.texts(source.number).values():
            texts = grown(texts, next(table.text_keys), text.moved(target.position))
        table.note_texts(target.number, texts)
        blocks.hand_over(slots, target.number, target.position)
        if source.position and not len(slots):  # nothing is left of what now stands in between
            blocks.ledger.follow(target.number, -1)
        table.advance(target.number, source.position)
        table.remove(name, into=target.number)
    return len(slots)
