"""How well each recalled token matches what asks."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CLAMP = 8.0
"""Standard deviations beyond which a match counts no further, as in the search for passages."""

ROUNDING = 1e-5
"""A deviation of cosines below this is that of their rounding: they are all the same."""


def match(
    query: torch.Tensor,
    query_mask: torch.Tensor | None,
    memory: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    """How far each memory token stands out to the tokens that ask.

    The cosines of a query token with all memory tokens of its row are standardised, so that a word
    that fits everywhere says nothing; a memory token's match is its best over the query.

    Args:
        query: `[batch, tokens, hidden]`, any float dtype and norm.
        query_mask: `[batch, tokens]` bool, False for tokens that do not ask; None: all do.
        memory: `[batch, n, hidden]`, any float dtype and norm.
        mask: `[batch, n]` bool, False where there is no token; what stands there may be NaN.

    Returns:
        `[batch, n]` float32 in standard deviations, within 8; 0 where there is no token, and
        everywhere in a row that does not ask.
    """
    unit, stored = F.normalize(query.float(), dim=-1), F.normalize(memory.float(), dim=-1)
    cosine = torch.bmm(unit, stored.transpose(1, 2))
    held, count = mask[:, None], mask.sum(-1)[:, None, None].clamp(min=1)
    mean = torch.where(held, cosine, 0.0).sum(-1, keepdim=True) / count
    spread = torch.where(held, cosine - mean, 0.0)
    deviation = (spread.square().sum(-1, keepdim=True) / count).sqrt()
    z = torch.where(deviation > ROUNDING, spread / deviation, 0.0).clamp(-CLAMP, CLAMP)
    if query_mask is not None:
        z = z.masked_fill(~query_mask[..., None], -CLAMP)
    if not z.shape[1]:
        return mask.float() * 0.0
    best = z.amax(1)
    if query_mask is not None:
        best = torch.where(query_mask.any(1, keepdim=True), best, 0.0)
    return torch.where(mask, best, 0.0)
