"""What a calibration compares: ranks of right passages, whitening, scores of wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cmr.kernels.reference.select import Rule, similarity_line
from cmr.retrieval.calibration import Null

BLOCK = 32
EVEN = 0.1
"""Share of the kept variances' mean that is added to each before it divides."""
FEWEST = 12
"""Blocks of the smallest memory whose best wrong score is looked at."""
_STARTS = 6
_CHUNK = 4_096


class Passages:
    """A text's passages of two blocks, and which of them hold each fact.

    What is left over behind the last whole block is no block.

    Attributes:
        right: `[facts, blocks]` bool: passages that hold as much of a fact as any.
        holding: those that hold some of it.
        near: these and the ones beside them.
    """

    def __init__(self, tokens: int, spans: Sequence[tuple[int, int]], device: torch.device) -> None:
        self.blocks = tokens // BLOCK
        places = torch.arange(self.blocks)
        self.successor = torch.where(places + 1 < self.blocks, places + 1, -1).to(device)
        first, last = places * BLOCK, (places + 2).clamp(max=self.blocks) * BLOCK
        inside = torch.stack(
            [(last.clamp(max=stop) - first.clamp(min=start)).clamp(min=0) for start, stop in spans]
        )
        self.right = (inside == inside.amax(-1, keepdim=True)).to(device)
        self.holding = (inside > 0).to(device)
        near = torch.zeros_like(inside, dtype=torch.bool)
        near[:, :-1] |= inside[:, 1:] > 0
        near[:, 1:] |= inside[:, :-1] > 0
        self.near = (near | (inside > 0)).to(device)

    def line(
        self, maxima: torch.Tensor, mask: torch.Tensor, visible: torch.Tensor, power: int
    ) -> torch.Tensor:
        """Scores of passages `[rows, blocks]` as the search gives them; -inf where not visible."""
        successor = self.successor[: maxima.shape[-1]].clone()
        successor[-1:] = -1
        return similarity_line(maxima, mask, successor, visible, _rule(power))[0]

    def reciprocal_ranks(self, line: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """One over the place of the right passage among the peaks of each row's line.

        Of lines `[rows, blocks]` and `[rows]` int64, which fact each asks for; `[rows]` float32.
        """
        # Passages overlap, so a good one lifts its neighbours: only peaks count, and none near it.
        best = line.masked_fill(~self.right[facts], -math.inf).amax(-1, keepdim=True)
        ahead = torch.nn.functional.pad(line, (1, 1), value=-math.inf)
        peaks = (line >= ahead[:, 2:]) & (line > ahead[:, :-2])
        return 1.0 / (1 + ((line > best) & peaks & ~self.near[facts]).sum(-1))


def block_maxima(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Largest product `[asking, blocks]` float32 of each query with a token of each block."""
    # A part of the text at a time: all products at once would be as large as its attention.
    queries, blocks = queries.float(), len(keys) // BLOCK
    found = queries.new_empty(len(queries), blocks)
    for first in range(0, blocks * BLOCK, _CHUNK):
        part = keys[first : min(first + _CHUNK, blocks * BLOCK)].float()
        scores = (queries @ part.t()).view(len(queries), -1, BLOCK).amax(-1)
        found[:, first // BLOCK : first // BLOCK + scores.shape[1]] = scores
    return found


def rows_of(maxima: torch.Tensor, counts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima of all queries in a row as `[rows, longest, blocks]`, and a mask of what asks."""
    rows = torch.nn.utils.rnn.pad_sequence(list(maxima.split(list(counts))), batch_first=True)
    places = torch.arange(rows.shape[1], device=rows.device)
    return rows, places < torch.tensor(counts, device=rows.device)[:, None]


def spectrum(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean `[hidden]`, variances in falling order `[hidden]` and their directions, float32.

    Of `states` `[tokens, hidden]` of norm 1, a part at a time: all in float32 might not fit.
    """
    mean = sum((part.float().sum(0) for part in states.split(_CHUNK)), torch.zeros(())) / len(
        states
    )
    product = sum(
        ((part.float() - mean).t() @ (part.float() - mean) for part in states.split(_CHUNK)),
        torch.zeros(()),
    )
    values, vectors = torch.linalg.eigh(product / len(states))
    # Which way a direction points is the solver's whim: its largest part is made positive.
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return mean, values.flip(0).clamp(min=0), (vectors * signs).flip(1)


def whitening(values: torch.Tensor, vectors: torch.Tensor, width: int) -> torch.Tensor:
    """Projection `[hidden, width]` on the first directions, each divided by how much it varies."""
    # Directions that hardly vary would be blown up to the size of all others: an even share of the
    # mean is added first.
    kept = values[:width]
    return vectors[:, :width] * (kept + EVEN * kept.mean()).rsqrt()


def null(
    passages: Passages,
    maxima: torch.Tensor,
    mask: torch.Tensor,
    power: int,
    generator: torch.Generator,
) -> Null:
    """Median best score of a passage when no fact is stored, as base + slope * ln(blocks).

    `maxima` `[rows, longest, blocks]` float32 with their `mask` `[rows, longest]`; `power` is that
    of the weights, and `generator` says where in the text smaller memories begin.
    """
    # The best of more wrong passages is higher: memories of several sizes show by how much.
    free = ~passages.holding.any(0)
    sizes, size = [], float(FEWEST)
    while size < passages.blocks:
        sizes.append(int(size))
        size *= 2**0.5
    points = []
    for size in [*sizes, passages.blocks]:
        room = passages.blocks - size
        starts = torch.randint(0, room + 1, (_STARTS,), generator=generator) if room else [0]
        best, counts = [], []
        for start in map(int, starts):
            visible = free[start : start + size]
            line = passages.line(
                maxima[..., start : start + size], mask, visible.expand(len(maxima), -1), power
            )
            best.append(line.amax(-1))
            counts.append(int(visible.sum()))
        points.append((math.log(sum(counts) / len(counts)), float(torch.cat(best).median())))
    grid = torch.tensor([(1.0, x) for x, _ in points], dtype=torch.float64)
    values = torch.tensor([[y] for _, y in points], dtype=torch.float64)
    base, slope = torch.linalg.lstsq(grid, values).solution[:, 0].tolist()
    return (round(base, 4), round(max(0.0, slope), 4))


def _rule(power: int) -> Rule:
    """A search for similarity alone; what comes after the line is not used here."""
    return Rule(
        peak_power=power,
        clamp=8.0,
        threshold=0.0,
        null_base=1.0,
        null_slope=0.0,
        few_blocks=0,
        few_certainty=1.0,
        passage=2,
        neighbours=0,
    )
