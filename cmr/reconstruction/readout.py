"""A weighted sum over memory for every token that reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.reference.attention import NEG_INF, wide


def cosines(states: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cosine of every token with every memory token, `[batch, tokens, n]`; shapes as of `read_out`.

    It is 0 where the mask is False, whatever stands there, and for a state that is all 0.
    """
    unit = F.normalize(wide(states), dim=-1)
    stored = F.normalize(held(memory, mask).to(unit.dtype), dim=-1)
    return torch.bmm(unit, stored.transpose(1, 2))


def held(memory: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`memory` `[batch, n, hidden]` with zeros where the mask is False."""
    return torch.where(mask[..., None], memory, 0.0)


def temperature(method: str | None, hidden: int) -> float:
    """What the cosines are divided by in front of the softmax: 1, or `hidden ** -0.5`."""
    # With 'attention' the logits are q·k / sqrt(hidden) of states that were brought to a root mean
    # square of 1, as a layer's norm does: attention whose projections change nothing.
    return hidden**-0.5 if method in ("attention", "recompute") else 1.0


def read_out(
    states: torch.Tensor,
    memory: torch.Tensor,
    mask: torch.Tensor,
    *,
    method: str | None = None,
    passages: torch.Tensor | None = None,
    prior: torch.Tensor | None = None,
) -> torch.Tensor:
    """What each token reads of memory.

    - 'weighted_sum', None: `softmax_i(cos(h, m_i)) @ m`.
    - 'attention', 'recompute': `softmax_i(sqrt(hidden) cos(h, m_i)) @ m`.
    - 'hierarchical': `m_p = softmax_{i in p}(cos(h, m_i)) @ m` inside each passage p, and over them
      `softmax_p(cos(h, m_p)) @ m_p` (Yang et al. 2016).

    Args:
        states: `[batch, tokens, hidden]`, any float dtype.
        memory: `[batch, n, hidden]`, any float dtype; where the mask is False NaN, too.
        mask: `[batch, n]` bool, True where there is a token.
        method: one of the above.
        passages: `[batch, n]` int64 passage of each memory token, needed for 'hierarchical'.
        prior: `[batch, n]` float32 factors of the weights, at least 0; None: 1.

    Returns:
        `[batch, tokens, hidden]` float32 (float64 where the states are), 0 in a row without memory.
    """
    # Cosines, not products: how long a state is says nothing of what it is about.
    scores = cosines(states, memory, mask) / temperature(method, states.shape[-1])
    scores = _with_prior(scores, mask, prior)
    stored = held(memory, mask).to(scores.dtype)
    if method != "hierarchical":
        return torch.bmm(_softmax(scores), stored)
    if passages is None:
        raise ValueError("passages: a tensor expected for method='hierarchical', got None")
    unit = F.normalize(wide(states), dim=-1)
    # Two softmaxes: inside each passage, then over what was read of the passages.
    sums, fits = [], []
    for passage in passages[mask].unique().tolist():
        inside = (passages == passage) & mask
        sums.append(torch.bmm(_softmax(scores.masked_fill(~inside[:, None], NEG_INF)), stored))
        cosine = (unit * F.normalize(sums[-1], dim=-1)).sum(-1)
        fits.append(cosine.masked_fill(~inside.any(1, keepdim=True), NEG_INF))
    if not sums:
        return torch.zeros_like(unit)
    share = _softmax(torch.stack(fits, dim=-1))
    return (torch.stack(sums, dim=-2) * share[..., None]).sum(-2)


def joint(
    states: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor, prior: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 'attention' sum of `read_out`, and how it fares beside the token itself.

    That is `[batch, tokens]`, the log-sum-exp of the memory's logits less the logit that the token
    has with itself; `-inf` in a row without memory.
    """
    sharp = 1.0 / temperature("attention", states.shape[-1])
    scores = _with_prior(cosines(states, memory, mask) * sharp, mask, prior)
    recalled = torch.bmm(_softmax(scores), held(memory, mask).to(scores.dtype))
    return recalled, torch.logsumexp(scores, -1) - sharp


def _with_prior(
    scores: torch.Tensor, mask: torch.Tensor, prior: torch.Tensor | None
) -> torch.Tensor:
    if prior is not None:
        # A factor in front of the softmax is a summand of the logits.
        scores = scores + prior.to(scores.dtype).log()[:, None]
    return scores.masked_fill(~mask[:, None], NEG_INF)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, 0 where everything is hidden."""
    # A softmax over nothing but -inf would be NaN.
    blind = (scores == NEG_INF).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
