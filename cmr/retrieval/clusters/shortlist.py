"""Scores of passages that only some of a session's blocks are known of."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cmr.kernels.reference.select import Rule, shares_of


@dataclass(frozen=True)
class Shortlist:
    """Blocks worth an exact comparison, and what their scores are to be measured by.

    Attributes:
        slots: `[batch, n]` int64, rising, then -1 for none. The successors of the best passages and
            what stands beside them are among them.
        maxima: `[batch, tokens, n]` float32, their exact maxima, `-inf` for none.
        mean, deviation: `[batch, tokens]`, of each query token's maxima over the row's blocks.
        peaks: `[batch, tokens]`, the largest that were looked at exactly; `-inf` for none.
        after: `[batch, n]` int64, where among them each one's successor is, or -1.
    """

    slots: torch.Tensor
    maxima: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    peaks: torch.Tensor
    after: torch.Tensor
    query_mask: torch.Tensor | None
    rule: Rule

    def line(self) -> torch.Tensor:
        """Similarity `[batch, n]` of the passage that begins at each block."""
        links = self.after if self.rule.passage == 2 else [None] * len(self.after)
        lines = [line_of(*row) for row in zip(*self.measured(), links, strict=True)]
        line = torch.stack(lines) if lines else self.maxima.new_empty(0, 0)
        return line.masked_fill(self.slots < 0, -torch.inf)

    def measured(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised values `[batch, tokens, n]`, and each token's share of a score."""
        rule = self.rule
        z = standardised(self.maxima, self.mean, self.deviation, rule.clamp)
        top = standardised(self.peaks[..., None], self.mean, self.deviation, rule.clamp)[..., 0]
        if z.shape[-1]:
            top = torch.maximum(top, z.amax(-1))
        return z, shares_of(top, self.query_mask, rule.peak_power)[0]

    def explained(self, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `selection.values_of` says of passages that begin here, of what is here alone."""
        z, shares = self.measured()
        if not z.shape[-1]:
            return z.new_zeros(*z.shape[:2], starts.shape[1]), shares
        at = torch.searchsorted(_rising(self.slots), starts.clamp(min=0))
        at = at.clamp(max=self.slots.shape[1] - 1)
        values = z.gather(2, at[:, None].expand(-1, z.shape[1], -1))
        if self.rule.passage == 2:
            following = self.after.gather(1, at)[:, None].expand(-1, z.shape[1], -1)
            beside = z.gather(2, following.clamp(min=0))
            values = torch.maximum(values, beside.masked_fill(following < 0, -self.rule.clamp))
        return values, shares


def standardised(
    maxima: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, clamp: float
) -> torch.Tensor:
    """Maxima `[..., tokens, n]` as deviations from their mean; see `standardise` of the kernels."""
    # A spread at the level of float32 rounding is no spread.
    flat = (deviation <= 1e-6 * mean.abs())[..., None]
    z = (maxima - mean[..., None]) / deviation[..., None]
    z = z.masked_fill(flat, 0.0).clamp(-clamp, clamp)
    return torch.where(maxima.isfinite(), z, -clamp)


def line_of(z: torch.Tensor, shares: torch.Tensor, after: torch.Tensor | None) -> torch.Tensor:
    """Similarities `[n]` of passages with second blocks `after`; None: a passage is one block."""
    if after is not None and z.shape[1]:
        following = z.index_select(1, after.clamp(min=0)).masked_fill(after < 0, -torch.inf)
        z = torch.maximum(z, following)
    # Column by column in one order: passages of equal blocks get equal scores, to the bit.
    return (z * shares[:, None]).sum(0)


def places(links: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Where in each row of slots `[batch, n]`, rising and then -1, what each links to is; or -1."""
    if not slots.shape[1] or not len(links):
        return torch.full_like(slots, -1)
    to = torch.where(slots >= 0, links[slots.clamp(min=0)], -1)
    at = torch.searchsorted(_rising(slots), to).clamp(max=slots.shape[1] - 1)
    return torch.where((slots.gather(1, at) == to) & (to >= 0), at, -1)


def joined(slots: torch.Tensor, *links: torch.Tensor | None) -> torch.Tensor:
    """Slots and what they link to, rising, each once; links that are None lead nowhere."""
    more = torch.cat([slots, *(link[slots] for link in links if link is not None)])
    return more[more >= 0].unique()


def _rising(slots: torch.Tensor) -> torch.Tensor:
    """Slots with the largest number there is for none, so that each row can be searched in."""
    return torch.where(slots >= 0, slots, torch.iinfo(torch.int64).max)
