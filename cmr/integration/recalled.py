"""What the last forward recalled, for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cmr.integration.recall import Recall


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
    """

    start: int
    end: int
    score: float
    gate: float
    session: str
    token_ids: tuple[int, ...] = field(repr=False)
    text: str | None = None


def recalled_passages(
    recall: Recall,
    gates: dict[int, torch.Tensor],
    names: list[str],
    tokenizer: Any,
) -> list[list[RecalledPassage]]:
    """Per row, the passages in the order of their scores.

    Args:
        recall: what the rows read.
        gates: layer number to `[batch, heads, tokens]`.
        names: session name of each row.
        tokenizer: decodes the text, or None.
    """
    shape = recall.choice.table.shape[:2]
    mask, ids, places = (
        x.view(*shape, -1).cpu() for x in (recall.mask, recall.read_ids, recall.read_positions)
    )
    scores = recall.choice.scores.cpu()
    off = (recall.bias == float("-inf")).cpu().tolist()
    share = _mean_gate(gates, len(names))
    rows = []
    for row, name in enumerate(names):
        found = []
        for passage, score in enumerate(scores[row].tolist()):
            held = mask[row, passage]
            if off[row] or not bool(held.any()):
                continue
            tokens = tuple(ids[row, passage][held].tolist())
            where = places[row, passage][held]
            text = None if tokenizer is None else tokenizer.decode(tokens)
            start, end = int(where.min()), int(where.max()) + 1
            found.append(RecalledPassage(start, end, score, share[row], name, tokens, text))
        rows.append(found)
    return rows


def _mean_gate(gates: dict[int, torch.Tensor], batch: int) -> list[float]:
    if not gates:
        return [0.0] * batch
    means = torch.stack([gate.float().mean(dim=(1, 2)).cpu() for gate in gates.values()])
    return [float(share) for share in means.mean(dim=0)]
