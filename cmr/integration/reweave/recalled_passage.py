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
    mask, ids, places = (x.cpu() for x in (recall.mask, recall.read_ids, recall.read_positions))
    used, counts = _read_of(recall)
    of = _passage_of(recall)
    scores = recall.choice.scores.cpu()
    unread = (recall.bias == float("-inf")) & (recall.successors is None)
    off = unread.cpu().tolist()
    share = _mean_gate(gates, len(names))
    spoke = [0.0] * len(names) if said is None else said.mean(dim=1).tolist()
    rows = []
    for row, name in enumerate(names):
        found = []
        for passage, score in enumerate(scores[row].tolist()):
            mine = of[row] == passage
            into = places[row, mine & used[row]].sort().values.tolist()
            read = len(into) if counts is None else counts[row][passage]
            if off[row] or not read:
                continue
            where, order = places[row, mine & mask[row]].sort()
            tokens = tuple(ids[row, mine & mask[row]][order].tolist())
            text = None if tokenizer is None else tokenizer.decode(tokens)
            start, end = int(where[0]), int(where[-1]) + 1
            found.append(
                RecalledPassage(
                    start,
                    end,
                    score,
                    share[row],
                    name,
                    tokens,
                    text,
                    read=read,
                    positions=tuple(into),
                    next_token=spoke[row],
                )
            )
        rows.append(found)
    return rows


def _read_of(recall: Recall) -> tuple[torch.Tensor, list[list[int]] | None]:
    """Which of the recalled tokens `[batch, tokens]` are read, and as how many of each passage.

    None: as many as there are.
    """
    if recall.plan is None:
        return recall.read.cpu(), None
    plan = recall.plan.to(torch.device("cpu"))
    counts = plan.counts(recall.passages[0].cpu(), recall.choice.table.shape[1])
    return plan.used(recall.mask.shape[1]), counts.tolist()


def _passage_of(recall: Recall) -> torch.Tensor:
    """The passage of each recalled token, `[batch, tokens]` int64."""
    within = recall.choice.within
    if within is None or recall.plan is not None:
        return recall.passages.cpu().expand(recall.mask.shape)
    # Not by the table: a block that one passage needs may stand there for another one before it.
    first, last = within.cpu()[..., None].unbind(2)
    places = recall.read_positions.cpu()[:, None]
    return ((places >= first) & (places <= last)).int().argmax(1)


def _mean_gate(gates: dict[int, torch.Tensor], batch: int) -> list[float]:
    if not gates:
        return [0.0] * batch
    means = torch.stack([gate.detach().float().mean(dim=(1, 2)).cpu() for gate in gates.values()])
    return [float(share) for share in means.mean(dim=0)]
