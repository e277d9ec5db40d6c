"""Passages that keep no states, run through the model before a request wants to read them."""

from __future__ import annotations

import torch

from cmr.integration.consolidation import Alone, Between, no_wait, one_by_one
from cmr.integration.core import Core
from cmr.kernels.reference.select import block_table
from cmr.retrieval.selection import TUNED


def run_ahead(
    core: Core, session: int, passages: int, alone: Alone, between: Between = no_wait
) -> int:
    """Passages of a session are run through the model; see `Memory.prepare`.

    `between` is called in front of each of them, without the lock.
    """
    ledger, lower = core.ring.ledger, core.layout.lower
    again = core.config.reweave.reconstruction_method == "recompute"
    bare = core.layout.store == "tokens" or (lower.long_term and not lower.long_term_states)
    if not (again or bare):
        return 0
    with core.lock:
        core.identity.require()
        starts = _likely(core, session)[:passages]
        numbers = ledger.number[starts].tolist()

    def prepared(start: int) -> int:
        passage = _passage(core, start)
        if not again and bool(core.ring.keeps_states(passage[passage >= 0]).all()):
            return 0
        with alone():
            return core.recomputed.prepare(passage[None])

    return one_by_one(core, starts, numbers, between, prepared)


def _likely(core: Core, session: int) -> torch.Tensor:
    """First slots of a session's passages on the CPU, those that are likely read next first."""
    ring = core.ring
    # A conversation goes on near what it last was about: near in the text, whose order is that of
    # the blocks' numbers, and of what is as near the newer first.
    slots = ring.ledger.slots_of(session)
    used = ring.last_access[slots.to(ring.device)].cpu()
    at = torch.arange(len(slots))
    last = at[used == used.max()] if len(slots) and bool(used.any()) else at[-1:]
    distance = (at[:, None] - last).abs().amin(-1) if len(slots) else at
    return slots.flip(0)[distance.flip(0).argsort(stable=True)]


def _passage(core: Core, start: int) -> torch.Tensor:
    """`[run]` slots as a search chooses them for the passage that begins with this one."""
    columns, config = core.ring.columns, core.standing_retriever.config
    first = torch.tensor([[start]], device=core.ring.device)
    links = columns.successor, columns.predecessor
    table = block_table(first, *links, length=TUNED.passage, neighbours=config.neighbours)
    return table[0, 0].cpu()
