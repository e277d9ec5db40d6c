"""How what was read of memory enters the states."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from cmr.kernels.reference.attention import wide
from cmr.reconstruction.readout import cosines, held


def blend(
    states: torch.Tensor,
    recalled: torch.Tensor,
    reads: torch.Tensor,
    method: str,
    weight: float | torch.Tensor,
) -> torch.Tensor:
    """States with memory in them.

    - 'weighted_sum', 'gated', 'attention': `(1 - w) h + w m`, that is h + w (m - h).
    - 'residual': `h + w m`.

    States and what they read are `[batch, tokens, hidden]` of any float dtype; `reads` (bool) and w
    are broadcastable to `[batch, tokens]`. The result has the shape and dtype of the states, formed
    in float32 (or float64). Where a token does not read or w is 0, it stays bit for bit.
    """
    share = torch.as_tensor(weight, device=states.device, dtype=wide(states).dtype)
    reads = (reads & (share > 0)).unsqueeze(-1)
    share = share.unsqueeze(-1)
    here = wide(states)
    kept = here if method == "residual" else (1.0 - share) * here
    mixed = (kept + share * recalled.to(here.dtype)).to(states.dtype)
    # Rounding must not touch a token that reads nothing, so it is taken as it came.
    return torch.where(reads, mixed, states)


def fit(
    states: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor, floor: torch.Tensor
) -> torch.Tensor:
    """How well the best memory token fits each token, in [0, 1]: the gate of 'gated'.

    `(best cosine - floor) / (1 - floor)`, at least 0: nothing where the best is no better than what
    can be expected when nothing fits, 1 for a copy. Given states, memory and mask as of `read_out`
    and a floor `[batch]` (see `expected_best`), it is `[batch, tokens]` float32 (float64 where the
    states are), 0 in a row without memory.
    """
    cosine = cosines(states, memory, mask)
    if not cosine.shape[2]:
        return cosine.new_zeros(cosine.shape[:2])
    best = cosine.masked_fill(~mask[:, None], -1.0).amax(-1)
    # A floor of 1 leaves no room: it is divided by the least number then.
    floor = floor.to(best.dtype)[:, None]
    room = (1.0 - floor).clamp(min=torch.finfo(best.dtype).eps)
    return ((best - floor) / room).clamp(0.0, 1.0) * mask.any(1, keepdim=True)


def expected_best(memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The best of n cosines where nothing fits: mean + sqrt(2 ln n) deviations.

    States lie in a narrow cone, so even unrelated ones have large cosines. How large, memory tells
    itself: mean and deviation are those of the cosines of its tokens with each other. The largest
    of n normal draws is expected below sqrt(2 ln n) deviations (Boucheron, Lugosi and Massart 2013,
    theorem 2.5). The search's certainty grows with ln n likewise.

    `[batch]` float32 in [0, 1] for memory `[batch, n, hidden]` and its mask; 0 below two tokens.
    """
    unit = F.normalize(held(memory, mask).float(), dim=-1)
    alive = unit.square().sum(-1).sum(-1)  # the cosines of tokens with themselves
    # Cosines of tokens with themselves are left out of mean and deviation.
    pairs = (alive * (alive - 1.0)).clamp(min=1.0)
    mean = (unit.sum(1).square().sum(-1) - alive) / pairs
    # The squares of all cosines, by the smaller of the two products that have them as their norm.
    tall = unit.shape[1] > unit.shape[2]
    product = torch.bmm(unit.mT, unit) if tall else torch.bmm(unit, unit.mT)
    square = (product.square().sum((1, 2)) - alive) / pairs
    deviation = (square - mean.square()).clamp(min=0.0).sqrt()
    count = mask.sum(-1).clamp(min=1).float()
    floor = mean + deviation * (2.0 * count.log()).sqrt()
    return torch.where(alive > 1.5, floor.clamp(0.0, 1.0), 0.0)


def even_gate(weight: float) -> float:
    """logit(weight): what is added to memory's logits beside the token's own."""
    # At the ends the logit is infinite; the sigmoid of it is exactly 0 or 1.
    if weight in (0.0, 1.0):
        return math.copysign(math.inf, weight - 0.5)
    return math.log(weight) - math.log1p(-weight)
