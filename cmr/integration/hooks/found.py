"""What a search found, in the numbers that are told of a request."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmr.integration.core import Core
from cmr.integration.requests.answers import Found
from cmr.integration.reweave.recall import Recall
from cmr.kernels.reference.attention import NEG_INF
from cmr.retrieval import Choice


def what_was_found(
    core: Core, sessions: Sequence[int], choice: Choice, recall: Recall | None
) -> Found:
    """The numbers of a search; nothing of it waits for the device.

    `nbytes` are those of the tokens that each row reads, at all layers that read: as they are
    attended to, wherever they lay and however they were stored.
    """
    ring = core.ring
    table = choice.table.flatten(1)
    there = table >= 0
    at = table.clamp(min=0)
    # The next search may write over the choice: nothing here is a view of it.
    relevance = torch.where(there, ring.relevance[at].float().nan_to_num(nan=0.0), NEG_INF)
    tiers = [(there & tier.holds(table)).sum(-1) for tier in ring.ledger.tiers]
    read = torch.zeros(len(sessions), dtype=torch.int64, device=table.device)
    if recall is not None:
        read = recall.read.sum(-1)
    return Found(
        sessions=tuple(sessions),
        certainty=choice.certainty.float().clone(),
        relevance=relevance.amax(-1) if table.shape[1] else torch.full_like(read, NEG_INF).float(),
        nbytes=read * token_bytes(core),
        tiers=torch.stack(tiers, -1),
    )


def token_bytes(core: Core) -> int:
    """Bytes that all layers that read take of one remembered token."""
    layout, adapter = core.layout, core.adapter
    kind = "states" if layout.residual else "kv"
    return sum(adapter.layer_shape(n, kind).token_bytes() for n in layout.read_layers)
