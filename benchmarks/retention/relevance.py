"""Block relevance from the kept scores: by the library's own scorer, and by plain novelty."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.retention.scores import BLOCK
from cmr.config import SCORING_METHODS, CMRConfig
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.capture.piece_scores import Piece
from cmr.memory.running_quantiles import RunningQuantiles

PIECE = 384  # tokens that the reader takes at once in a window of 512
FIRST = 2_000  # blocks whose mean state is taken for that of all text
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda x: x.mean(1),
    "highest quarter": lambda x: x.topk(BLOCK // 4, dim=1).values.mean(1),
    "maximum": lambda x: x.amax(1),
}
"""Ways from the scores of a block's tokens `[blocks, 32]` to that of the block."""


class Replayed(BlockScorer):
    """The library's scorer, given scores that were computed before."""

    def __init__(self, method: str, scores: dict[str, torch.Tensor]) -> None:
        adapter: Any = SimpleNamespace(hidden=1)
        super().__init__(adapter, CMRConfig().with_overrides(scoring_method=method), layer=0)
        self.scores, self.at = scores, 0

    def raw(self, piece: Piece, methods: Any) -> dict[str, torch.Tensor]:
        part = slice(self.at, self.at + piece.mask.shape[1])
        return {name: self.scores[name][None, part] for name in methods}

    def run(self, tokens: int) -> torch.Tensor:
        """Relevance of all blocks, `[blocks]`, as if they were read piece by piece."""
        found = []
        for self.at in range(0, tokens, PIECE):
            mask = torch.ones(1, min(PIECE, tokens - self.at), dtype=torch.bool)
            found.append(self.of_piece(Piece(mask, mask, mask, mask, self.at == 0))[0])
        return torch.cat(found)


def by_method(scores: dict[str, torch.Tensor], tokens: int) -> dict[str, torch.Tensor]:
    """Relevance `[blocks]` by every scoring method whose scores are there."""
    found = {}
    for method in SCORING_METHODS:
        needed = ("attention_based", "variance_based") if method == "hybrid" else (method,)
        if all(name in scores for name in needed):
            found[method] = Replayed(method, scores).run(tokens)
    return found


def pooled(scores: torch.Tensor, how: str) -> torch.Tensor:
    """Uncalibrated scores `[tokens]` as one number a block."""
    return POOLS[how](scores.view(-1, BLOCK))


def calibrated(values: torch.Tensor) -> torch.Tensor:
    """Numbers of blocks as quantiles of the newest ones, as the library does it."""
    sample, found = RunningQuantiles(), []
    for part in values.split(PIECE // BLOCK):
        sample.add(part[None])
        found.append(sample.quantiles(part))
    return torch.cat(found)


def state_novelty(states: torch.Tensor) -> torch.Tensor:
    """1 - the largest cosine of a block's mean state with an earlier one, 2 without; `[blocks]`."""
    states = states.float()
    unit = torch.nn.functional.normalize(states - states[:FIRST].mean(0), dim=-1)
    found = torch.ones(len(unit))
    for start in range(0, len(unit), 512):
        part = unit[start : start + 512]
        cosine = part @ unit[: start + len(part)].T
        later = torch.arange(start + len(part)) >= torch.arange(start, start + len(part))[:, None]
        found[start : start + len(part)] = 1 - cosine.masked_fill(later, -1).amax(1)
    return found


def pair_novelty(ids: list[int]) -> torch.Tensor:
    """Share of a block's pairs of neighbouring tokens that never stood before it, `[blocks]`."""
    seen: set[tuple[int, int]] = set()
    found = []
    for start in range(0, len(ids), BLOCK):
        part = ids[max(0, start - 1) : start + BLOCK]
        pairs = list(itertools.pairwise(part))
        found.append(sum(pair not in seen for pair in pairs) / max(1, len(pairs)))
        seen.update(pairs)
    return torch.tensor(found)


def rarity(ids: list[int], vocabulary: int = 49_152) -> torch.Tensor:
    """Mean surprise of a block's tokens by how often each stood before, `[blocks]` in nats."""
    counts: Counter[int] = Counter()
    found = []
    for start in range(0, len(ids), BLOCK):
        part = ids[start : start + BLOCK]
        shares = torch.tensor([(counts[i] + 1) / (start + vocabulary) for i in part])
        found.append(float(-shares.log().mean()))
        counts.update(part)
    return torch.tensor(found)
