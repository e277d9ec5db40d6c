"""What the layers read of a choice where the settings let them read only some of it."""

from __future__ import annotations

from cmr.config import ReweaveConfig
from cmr.integration.reweave.recall import passages_of
from cmr.kernels.reference._paging import readable
from cmr.memory.block_store import BlockStore
from cmr.reconstruction.limits import Limits
from cmr.reconstruction.methods import match, plan_rows
from cmr.reconstruction.read_plan import ReadPlan
from cmr.retrieval import Ask, Choice


class Reducer:
    """Plans, once a search and for all layers, which tokens are read. Made where there is a limit.

    How well a token matches is told by the states that were searched. A plan is made on the CPU: on
    a GPU a search waits for it once.
    """

    def __init__(self, ring: BlockStore, reweave: ReweaveConfig) -> None:
        self._ring = ring
        self._limits = Limits(reweave.max_memory_tokens, reweave.compression_ratio)
        self._method = reweave.reconstruction_method or "attention"
        self._guarded = reweave.sink_guard > 0

    def plan(self, choice: Choice, ask: Ask) -> ReadPlan | None:
        """What to read of the passages that were found for `ask`; None: all of it."""
        ring, table = self._ring, choice.table.flatten(1)
        columns = (table, choice.stamps.flatten(1), ring.created, ring.positions)
        there = choice.reads(ring.positions[table.clamp(min=0)]).flatten(1)
        mask = (readable(*columns) & there).cpu()
        counts: list[int] = mask.sum(-1).tolist()
        if all(self._limits.of(count) == count for count in counts):
            return None
        states = ring.states(table.flatten().clamp(min=0).cpu())
        memory = states.view(*mask.shape, -1).cpu()
        # The state of an attention sink is stored as zeros: that tells it from other tokens here.
        if self._guarded:
            mask &= (memory != 0).any(-1)
        asks = None if ask.mask is None else ask.mask.cpu()
        matches = match(ask.states.cpu(), asks, memory, mask)
        passages = passages_of(choice.table, ring.block_size).cpu()
        return plan_rows(self._method, matches, passages, mask, self._limits)
