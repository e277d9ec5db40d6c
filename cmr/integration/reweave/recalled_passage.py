"""What the last forward recalled, for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.integration.reweave.recall import Recall


@dataclass(frozen=True)
class RecalledPassage:
    """A run of stored text that a row of the last forward could read.

    Attributes:
        start: position of its first token in the session's text.
        end: position behind its last token.
        score: the passage's score in the search, in standard deviations.
        gate: share of attention that went to memory, mean over layers, heads and tokens of the
            last forward; all passages of a row share it.
        session: name of the session.
        token_ids: the passage's token ids.
        text: the passage as text, None where no tokenizer is known.
        read: memory tokens that are read of it; fewer than `token_ids` where the settings limit
            them. The first token of a text, an attention sink, is not read.
        positions: positions of those of its tokens that go into them.
        next_token: share of what is said next that came from the tokens that followed recalled
            ones, mean over the tokens of the last forward that have logits; all passages of a row
            share it. 0 without `knn`.
    """

    start: int
    end: int
    score: float
    gate: float
    session: str
    token_ids: tuple[int, ...] = field(repr=False)
    text: str | None = None
    read: int = 0
    positions: tuple[int, ...] = field(default=(), repr=False)
    next_token: float = 0.0


def recalled_passages(
    recall: Recall,
    gates: dict[int, torch.Tensor],
    names: list[str],
    tokenizer: Any,
    said: torch.Tensor | None = None,
) -> list[list[RecalledPassage]]:
    """Per row, named by its session, the passages in the order of their scores.

    `gates` has `[batch, heads, tokens]` by layer number; for `said` see `Step.said`.
    """
    shape = recall.choice.table.shape[:2]
    mask, ids, places = (
        x.view(*shape, -1).cpu() for x in (recall.mask, recall.read_ids, recall.read_positions)
    )
    used, counts = _read_of(recall, mask)
    scores = recall.choice.scores.cpu()
    unread = (recall.bias == float("-inf")) & (recall.successors is None)
    off = unread.cpu().tolist()
    share = _mean_gate(gates, len(names))
    spoke = [0.0] * len(names) if said is None else said.mean(dim=1).tolist()
    rows = []
    for row, name in enumerate(names):
        found = []
        for passage, score in enumerate(scores[row].tolist()):
            held = mask[row, passage]
            if off[row] or not counts[row][passage]:
                continue
            tokens = tuple(ids[row, passage][held].tolist())
            where = places[row, passage][held]
            text = None if tokenizer is None else tokenizer.decode(tokens)
            start, end = int(where.min()), int(where.max()) + 1
            into = places[row, passage][used[row, passage]].tolist()
            found.append(
                RecalledPassage(
                    start,
                    end,
                    score,
                    share[row],
                    name,
                    tokens,
                    text,
                    read=counts[row][passage],
                    positions=tuple(into),
                    next_token=spoke[row],
                )
            )
        rows.append(found)
    return rows


def _read_of(recall: Recall, mask: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
    """Which of the recalled tokens `[batch, passages, tokens]` are read, and as how many."""
    if recall.plan is None:
        read = recall.read.view(mask.shape).cpu()
        return read, read.sum(-1).tolist()
    plan = recall.plan.to(mask.device)
    counts = plan.counts(recall.passages[0].to(mask.device), mask.shape[1])
    return plan.used(mask[0].numel()).view_as(mask), counts.tolist()


def _mean_gate(gates: dict[int, torch.Tensor], batch: int) -> list[float]:
    if not gates:
        return [0.0] * batch
    means = torch.stack([gate.detach().float().mean(dim=(1, 2)).cpu() for gate in gates.values()])
    return [float(share) for share in means.mean(dim=0)]
