"""Scores of any scale as running quantiles: 0.5 is the median of what was scored lately."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import nn

from cmr.kernels.reference.score import calibrate

# Scores of the newest text that a quantile is taken of, where nothing else is asked for.
SAMPLE = 16_384
_GOLDEN = 0.6180339887498949
_LEAST = 1e-4  # of a score whose logarithm is taken


class RunningQuantiles:
    """The newest scores of one or more kinds, as the sample that new ones are compared with.

    `kinds` scores of a token come together; the newest `size` of each kind are kept. `seen` counts
    those that were ever added.

    What is added at once is kept in an order in which every stretch is an even sample of it. So
    nothing is drawn at random, the order of what is added at once makes no difference, and a
    sample that is partly overwritten, or of which only a part fits, stays fair.
    """

    def __init__(self, kinds: int = 1, size: int = SAMPLE) -> None:
        if min(kinds, size) < 1:
            raise ValueError(f"kinds and size: 1 or more expected, got {kinds} and {size}")
        self.size = size
        self.seen = 0
        self._ring = torch.empty(kinds, 0)
        self._next = 0
        self._sorted: torch.Tensor | None = None

    @property
    def kinds(self) -> int:
        """Scores of a token that come together."""
        return self._ring.shape[0]

    @property
    def held(self) -> int:
        """Scores of each kind in the sample."""
        return min(self.seen, self.size)

    @torch.inference_mode(False)  # what is made here must be writable outside that mode, too
    def add(self, scores: torch.Tensor) -> None:
        """Take note of scores `[kinds, n]`; where one of a token's is NaN, of none of them."""
        if scores.ndim != 2 or len(scores) != self.kinds:
            raise ValueError(f"scores [{self.kinds}, n] expected, got {list(scores.shape)}")
        scores = scores.detach().float()
        scores = scores[:, ~scores.isnan().any(0)]
        count = scores.shape[1]
        if count == 0:
            return
        if self._ring.device != scores.device:
            self._ring = self._ring.to(scores.device)
        new = scores.sort(dim=1).values[:, _spread(count).to(scores.device)][:, : self.size]
        room = min(self.size - self._ring.shape[1], new.shape[1])
        if room:
            self._ring = torch.cat([self._ring, new[:, :room]], dim=1)
        if room < new.shape[1]:
            at = (self._next + torch.arange(new.shape[1] - room)) % self.size
            self._ring[:, at.to(new.device)] = new[:, room:]
            self._next = (self._next + new.shape[1] - room) % self.size
        self.seen += count
        self._sorted = None

    def sample(self) -> torch.Tensor:
        """The scores that are kept, `[kinds, held]` float32, sorted upwards."""
        if self._sorted is None:
            self._sorted = self._ring.sort(dim=1).values
        return self._sorted

    def quantiles(self, scores: torch.Tensor, kind: int = 0) -> torch.Tensor:
        """Share of the sample of `kind` below each score, ties counted half, in float32.

        0.5 without a sample, 0 for NaN.
        """
        return calibrate(scores, self.sample()[kind].to(scores.device))

    def state(self) -> dict[str, torch.Tensor]:
        """The sample, oldest first, as `sample` `[kinds, held]` float32, and `seen` `[1]` int64."""
        sample = torch.roll(self._ring, -self._next, dims=1).cpu()
        return {"sample": sample, "seen": torch.tensor([self.seen])}

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor], size: int = SAMPLE) -> RunningQuantiles:
        """What `state` gave (else ValueError), of which the newest `size` scores are kept."""
        sample, seen = state.get("sample"), state.get("seen")
        if sample is None or sample.ndim != 2 or not len(sample) or sample.dtype != torch.float32:
            what = "nothing" if sample is None else f"{sample.dtype} {list(sample.shape)}"
            raise ValueError(f"sample: float32 [kinds, n] expected, got {what}")
        if bool(sample.isnan().any()):
            raise ValueError("sample: numbers expected, got NaN")
        if seen is None or seen.shape != (1,) or seen.dtype != torch.int64:
            what = "nothing" if seen is None else f"{seen.dtype} {list(seen.shape)}"
            raise ValueError(f"seen: int64 [1] expected, got {what}")
        if int(seen) < sample.shape[1]:
            raise ValueError(f"seen: at least the {sample.shape[1]} kept expected, got {int(seen)}")
        found = cls(len(sample), size)
        found._ring = sample[:, -size:].clone()
        found.seen = int(seen) if found._ring.shape[1] == size else found._ring.shape[1]
        return found


class PlaceMeans:
    """How high blocks score for where they stand in a piece alone, to be taken off."""

    def __init__(self) -> None:
        self._means = torch.empty(0)
        self._counts = torch.empty(0)

    @torch.inference_mode(False)
    def without(self, scores: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        """Logarithms of scores `[rows, blocks]`, less the mean of their place.

        These are taken note of first. Blocks that are not `held` do not count and get 0.
        """
        # The attention that a block receives depends on how many tokens stand behind it, whatever
        # it says: places are counted from the end of the piece.
        logs = scores.clamp(min=_LEAST).log()
        place = (held.flip(1).cumsum(1).flip(1) - 1).clamp(min=0)
        more = max(0, scores.shape[1] - len(self._means))
        self._means = nn.functional.pad(self._means.to(scores.device), (0, more))
        self._counts = nn.functional.pad(self._counts.to(scores.device), (0, more))
        at, real = place.flatten(), held.flatten().float()
        counts = torch.zeros_like(self._counts).index_add(0, at, real)
        sums = torch.zeros_like(self._means).index_add(0, at, logs.flatten() * real)
        self._counts = self._counts + counts
        self._means = self._means + (sums - counts * self._means) / self._counts.clamp(min=1)
        return torch.where(held, logs - self._means[place], 0.0)

    def state(self) -> dict[str, torch.Tensor]:
        """`means` and `counts`, `[places]` float32 each, on the CPU."""
        return {"means": self._means.cpu(), "counts": self._counts.cpu()}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> PlaceMeans:
        """What `state` gave; ValueError for what it cannot have given."""
        found = cls()
        means, counts = state.get("means"), state.get("counts")
        for name, tensor in (("means", means), ("counts", counts)):
            if tensor is None or tensor.ndim != 1 or tensor.dtype != torch.float32:
                what = "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{name}: float32 [places] expected, got {what}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{name}: finite numbers expected")
        assert means is not None and counts is not None
        if means.shape != counts.shape or bool((counts < 0).any()):
            raise ValueError(f"counts: {len(means)} of at least 0 expected, as there are means")
        found._means, found._counts = means.clone(), counts.clone()
        return found


@lru_cache(maxsize=64)
def _spread(count: int) -> torch.Tensor:
    """Ranks 0..count-1 in an order of which every stretch is spread over all of them, `[count]`."""
    points = (torch.arange(count, dtype=torch.float64) * _GOLDEN) % 1
    return points.argsort().argsort()
