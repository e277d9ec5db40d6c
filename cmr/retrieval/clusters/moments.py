"""Mean and deviation of a session's block maxima without looking at every block."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

SAMPLE = 2048
"""Blocks of a session whose maxima are exact, at most."""
_AT_ONCE = 256
_SLOTS = 1 << 32


class Moments(NamedTuple):
    """Of each query token's maxima over the blocks that a row may see; tensors `[tokens]` float32.

    `peak` is the largest maximum that was looked at, `rest` the mean of those that the first look
    did not find. An exact maximum is estimated as `slope` times the approximate one plus `shift`.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    peak: torch.Tensor
    rest: torch.Tensor
    slope: float
    shift: torch.Tensor

    @classmethod
    def of(cls, maxima: torch.Tensor) -> Moments:
        """The true ones of all maxima `[tokens, n]`."""
        if not maxima.shape[1]:
            none = maxima.new_zeros(len(maxima))
            return cls(none, none, none - torch.inf, none, 1.0, none)
        deviation, mean = torch.std_mean(maxima, -1, correction=0)
        return cls(mean, deviation, maxima.amax(-1), mean, 1.0, torch.zeros_like(mean))


class Sample:
    """Vectors of some blocks side by side, kept up to date: maxima of them cost no gathering.

    `slots` are the blocks that it has, `of` what it was last taken from.
    """

    def __init__(self, block: int, like: torch.Tensor) -> None:
        self._block = block
        self.of: torch.Tensor | None = None
        self.slots = torch.empty(0, dtype=torch.int64)
        self._keys = self.slots
        self._vectors = like.new_empty(0, block, like.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self._vectors.nbytes

    def update(
        self,
        slots: torch.Tensor,
        stamps: torch.Tensor,
        read: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Have these blocks and no others; `read` gives the vectors of those that are new.

        Slots are on the CPU, stamps the numbers of their blocks.
        """
        # A block is known by both: its slot may hold another one by now.
        keys = stamps * _SLOTS + slots
        kept, new = torch.isin(self._keys, keys), ~torch.isin(keys, self._keys)
        if bool(kept.all()) and not bool(new.any()):
            return
        vectors = read(slots[new]).to(self._vectors)
        self._vectors = torch.cat([self._vectors[kept.to(vectors.device)], vectors])
        self._keys = torch.cat([self._keys[kept], keys[new]])
        self.slots = torch.cat([self.slots[kept], slots[new]])

    def drop(self, numbers: torch.Tensor) -> None:
        """Let go of blocks that are not where they were, by the number of each slot's block."""
        kept = self._keys == numbers[self.slots] * _SLOTS + self.slots
        if not bool(kept.all()):
            self._vectors = self._vectors[kept.to(self._vectors.device)]
            self._keys, self.slots, self.of = self._keys[kept], self.slots[kept], None

    def maxima(self, query: torch.Tensor) -> torch.Tensor:
        """Exact maxima `[tokens, n]` float32 of the sample's blocks, in the order of `slots`."""
        aims = query.to(self._vectors.dtype).t().contiguous()
        width = aims.shape[1]
        pieces = []
        for part in self._vectors.split(_AT_ONCE):
            similar = (part.flatten(0, 1) @ aims).view(len(part), self._block * width)
            tokens = self._block
            # The maximum over tokens by halves side by side: vector instructions in any dtype,
            # where `amax` over an inner dimension goes number by number.
            while tokens > 1:
                half = tokens // 2
                rest = similar[:, 2 * half * width : tokens * width]
                low, high = similar[:, : half * width], similar[:, half * width : 2 * half * width]
                similar = torch.maximum(low, high)
                if tokens % 2:
                    similar[:, :width] = torch.maximum(similar[:, :width], rest)
                tokens = half
            pieces.append(similar.float())
        return torch.cat(pieces).t()


def estimate(exact: torch.Tensor, at: torch.Tensor, found: torch.Tensor, count: int) -> Moments:
    """Moments over all blocks from a sample, and from what the first look found.

    The largest maxima make most of the variance, and the first look finds just those: they are
    counted in full, corrected by how the sample's ones differ from their approximation, and the
    sample stands only for the rest (post-stratification; Cochran, Sampling Techniques, 5A.9).

    `exact` `[tokens, n]` are the maxima of the sample's slots `at`, `found` `[tokens, slots]` the
    approximate ones, `-inf` for what was not found; there are `count` blocks in all.
    """
    # About the centre: squares of small numbers keep their digits.
    centre = exact.mean(-1, keepdim=True)
    hit = found > -torch.inf
    value = torch.where(hit, found - centre, 0.0)
    hits = hit.sum(-1, keepdim=True).float()
    total, squares = value.sum(-1, keepdim=True), value.square().sum(-1, keepdim=True)
    seen, guess, true = hit[:, at], value[:, at], exact - centre
    # Least squares over the sample's blocks that the first look found too.
    # Exact ones follow approximate ones along one line for all query tokens, but for a shift.
    many = seen.sum(-1, keepdim=True)
    middle = (guess * seen).sum(-1, keepdim=True) / many.clamp(min=1)
    level = (true * seen).sum(-1, keepdim=True) / many.clamp(min=1)
    off, up = (guess - middle) * seen, (true - level) * seen
    spread = off.square().sum()
    slope = torch.where(spread > 0, (off * up).sum() / spread.clamp(min=1e-12), 1.0)
    left = (up - slope * off).square().sum() / (many.sum() - len(exact)).clamp(min=1)
    shift = torch.where(many > 0, level - slope * middle, 0.0)
    # Sums over what was found, corrected; `left` is the variance about the line.
    first = shift * hits + slope * total
    second = (shift**2 + left) * hits + 2 * shift * slope * total + slope**2 * squares
    # The sample's blocks that were not found stand for all that were not.
    others, few = (count - hits).clamp(min=0), (~seen).sum(-1, keepdim=True).clamp(min=1)
    rest = (true * ~seen).sum(-1, keepdim=True) / few
    around = ((true - rest) * ~seen).square().sum(-1, keepdim=True) / few
    mean = (first + others * rest) / count
    square = (second + others * (around + rest**2)) / count
    deviation = (square - mean**2).clamp(min=0).sqrt()
    shift = shift + centre * (1 - slope)
    parts = (centre + mean, deviation, exact.amax(-1, keepdim=True), centre + rest, shift)
    means, deviations, peaks, others, shifts = (part[:, 0] for part in parts)
    return Moments(means, deviations, peaks, others, float(slope), shifts)
