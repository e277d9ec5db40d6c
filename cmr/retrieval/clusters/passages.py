"""Scores of passages that only some of a session's blocks are known of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.kernels.reference.select import Rule, shares_of


@dataclass(frozen=True)
class Candidates:
    """Blocks worth an exact comparison, and what their scores are to be measured by.

    Attributes:
        slots: `[batch, candidates]` int64, rising, -1 for none. The successors of the best passages
            and what stands beside them are among them.
        maxima: `[batch, tokens, candidates]` float32, their exact maxima, `-inf` for none.
        mean: `[batch, tokens]` float32, of each query token's maxima over the row's blocks.
        deviation: `[batch, tokens]` float32, of the same.
        peaks: `[batch, tokens]` float32, the largest maxima that were looked at exactly; `-inf`
            where only the candidates tell.
        counts: `[batch]` int64, blocks that the row may see.
    """

    slots: torch.Tensor
    maxima: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    peaks: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True)
class Found:
    """The best passages.

    Attributes:
        starts: `[batch, k]` int64, first slot of each passage, -1 where there is none.
        scores: `[batch, k]` float32 in falling order, `-inf` where there is none.
    """

    starts: torch.Tensor
    scores: torch.Tensor


def score(
    near: Candidates, query_mask: torch.Tensor | None, after: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """Similarity `[batch, candidates]` of the passage that begins at each candidate.

    Args:
        near: the candidates.
        query_mask: `[batch, tokens]` bool; None: all ask.
        after: `[batch, candidates]` int64, where among them each one's successor is, or -1.
        rule: of the scores.
    """
    z, shares = measured(near, query_mask, rule)
    lines = [line_of(*row, rule) for row in zip(z, shares, after, strict=True)]
    line = torch.stack(lines) if lines else near.maxima.new_empty(0, 0)
    return line.masked_fill(near.slots < 0, -torch.inf)


def measured(
    near: Candidates, query_mask: torch.Tensor | None, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised values `[batch, tokens, candidates]`, and each token's share of a score.

    Args:
        near: the candidates.
        query_mask: `[batch, tokens]` bool; None: all ask.
        rule: of the scores.
    """
    z = standardised(near.maxima, near.mean, near.deviation, rule.clamp)
    top = standardised(near.peaks[..., None], near.mean, near.deviation, rule.clamp)[..., 0]
    if z.shape[-1]:
        top = torch.maximum(top, z.amax(-1))
    return z, shares_of(top, near.counts, query_mask, rule.peak_power)[0]


def standardised(
    maxima: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, clamp: float
) -> torch.Tensor:
    """Maxima `[..., tokens, n]` as deviations from their mean; see `standardise` of the kernels."""
    # A spread at the level of float32 rounding is no spread.
    flat = (deviation <= 1e-6 * mean.abs())[..., None]
    z = (maxima - mean[..., None]) / deviation[..., None]
    z = z.masked_fill(flat, 0.0).clamp(-clamp, clamp)
    return torch.where(maxima.isfinite(), z, -clamp)


def line_of(z: torch.Tensor, shares: torch.Tensor, after: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Similarities `[n]` of passages; `after` `[n]` is where each one's successor is, or -1."""
    if rule.passage == 2 and z.shape[1]:
        following = z.index_select(1, after.clamp(min=0)).masked_fill(after < 0, -torch.inf)
        z = torch.maximum(z, following)
    # Column by column in one order: passages of equal blocks get equal scores, to the bit.
    return (z * shares[:, None]).sum(0)


def places(links: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Where in each row of `slots`, rising and then -1, the slot is that each one links to; or -1.

    Args:
        links: `[stored]` int64.
        slots: `[batch, n]` int64.
    """
    if not slots.shape[1] or not len(links):
        return torch.full_like(slots, -1)
    to = torch.where(slots >= 0, links[slots.clamp(min=0)], -1)
    rising = torch.where(slots >= 0, slots, torch.iinfo(torch.int64).max)
    at = torch.searchsorted(rising, to).clamp(max=slots.shape[1] - 1)
    return torch.where((slots.gather(1, at) == to) & (to >= 0), at, -1)


def beside(line: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The scores `[batch, n]` at other places, `-inf` where there is none."""
    if not line.shape[1]:
        return line
    return line.gather(1, places.clamp(min=0)).masked_fill(places < 0, -torch.inf)


def joined(slots: torch.Tensor, *links: torch.Tensor) -> torch.Tensor:
    """Slots and what they link to, rising, each once."""
    more = torch.cat([slots, *(link[slots] for link in links)])
    return more[more >= 0].unique()
