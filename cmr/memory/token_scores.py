"""Raw scores of tokens by each method: of any scale, to be calibrated."""

from __future__ import annotations

import torch
from torch import nn

from cmr.kernels.attention_received import attention_received
from cmr.kernels.score import state_scores, surprise


def token_mask(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, hidden_size: int
) -> torch.Tensor:
    """`[B, T]` bool, True for real tokens, after the shapes of both were checked."""
    if not isinstance(hidden_states, torch.Tensor):
        raise TypeError(f"hidden_states: a tensor expected, got {type(hidden_states).__name__}")
    if hidden_states.ndim != 3:
        raise ValueError(f"hidden_states [B, T, H] expected, got {list(hidden_states.shape)}")
    batch, tokens, width = hidden_states.shape
    if width != hidden_size:
        raise ValueError(f"hidden size {hidden_size} expected, got {width}")
    if attention_mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=hidden_states.device)
    if attention_mask.shape != (batch, tokens):
        raise ValueError(
            f"attention_mask {[batch, tokens]} expected (that of the states), "
            f"got {list(attention_mask.shape)}"
        )
    return attention_mask.to(hidden_states.device).bool()


def token_scores(
    method: str,
    hidden_states: torch.Tensor,
    mask: torch.Tensor,
    *,
    attention_weights: torch.Tensor | None = None,
    query: torch.Tensor | None = None,
    key: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
    previous_logits: torch.Tensor | None = None,
    token_ids: torch.Tensor | None = None,
    loss: torch.Tensor | None = None,
    gradients: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores of one method before calibration; see `RelevanceScorer` for what each one is.

    Args:
        method: any but `hybrid`.
        hidden_states: `[B, T, H]`.
        mask: `[B, T]` bool, True for real tokens.
        attention_weights: `[B, heads, T, T]` of a causal layer, as transformers gives them.
        query: `[B, heads, T, D]` of a layer, rotated as the layer does, with `key`.
        key: `[B, kv_heads, T, D]`.
        logits: `[B, T, V]`; those at t predict the token at t + 1.
        previous_logits: `[B, V]` that predict the first token; None: a row's first real token gets
            the mean of the others.
        token_ids: `[B, T]` integers.
        loss: a number with a graph that reaches `hidden_states`; the graph is kept.
        gradients: `[B, T, H]` of the loss by `hidden_states`.

    Returns:
        `[B, T]` float32; anything for padding. No gradient.
    """
    if method == "variance_based":
        return state_scores(hidden_states.detach(), 1).variance
    if method == "attention_based":
        return _attention(hidden_states, mask, attention_weights, query, key)
    if method == "surprise":
        if logits is None or token_ids is None:
            raise ValueError(
                "surprise needs logits= [B, T, V] and token_ids= [B, T]: states alone do not tell "
                "how expected a token was"
            )
        losses = surprise(logits.detach(), token_ids, previous_logits)
        return _without_first(losses, mask, previous_logits is not None)
    if gradients is None:
        if loss is None:
            raise ValueError(
                "gradient_based needs gradients= [B, T, H], or a loss= that was computed from "
                "hidden_states with gradients enabled"
            )
        gradients = _gradients(loss, hidden_states)
    if gradients.shape != hidden_states.shape:
        raise ValueError(
            f"gradients {list(hidden_states.shape)} expected (as the states), "
            f"got {list(gradients.shape)}"
        )
    return gradient_times_state(gradients, hidden_states)


def gradient_times_state(gradients: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """|g·h| of each token, `[B, T]` float32, of `[B, T, H]` each."""
    return torch.einsum("bth,bth->bt", gradients.float(), states.detach().float()).abs()


def fair_share(mask: torch.Tensor, fading: bool) -> torch.Tensor:
    """What `attention_received` gives where no token is special.

    Every query then looks evenly at what it sees, or, `fading`, with weights of 1 / distance, which
    is about how the attention of language models fades: on SmolLM2-135M it leaves the least trace
    of a token's position in its score, while an even share favours the last tokens of a text.

    `mask`: `[B, T]` bool, True for real tokens, without gaps in between. Gives float32 of the same
    shape, above 0; 1 for padding.
    """
    real = mask.float()
    if mask.shape[1] == 0:
        return real
    steps = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=torch.float32)
    weights = 1 / steps if fading else torch.ones_like(steps)
    visible = real.cumsum(1).long()
    whole = torch.cat([weights.new_ones(1), weights.cumsum(0)])[visible]
    behind = nn.functional.pad(real / whole, (0, mask.shape[1] - 1))
    received = nn.functional.conv1d(behind[:, None], weights[None, None])[:, 0]
    readers = real.flip(1).cumsum(1).flip(1)
    return torch.where(mask, received / readers.clamp(min=1), 1.0)


def _attention(
    states: torch.Tensor,
    mask: torch.Tensor,
    weights: torch.Tensor | None,
    query: torch.Tensor | None,
    key: torch.Tensor | None,
) -> torch.Tensor:
    """Attention received from later tokens, over its fair share; `[B, T]` float32.

    A token's attention to itself is left out: near the end of a text it would be all there is.
    """
    batch, tokens = mask.shape
    # Pair i is the query of token i + 1 and the key of token i; the last token has no reader.
    read = mask[:, 1:] & mask[:, :-1]
    fading = weights is not None or query is not None  # states alone know no distance
    if weights is not None:
        if weights.ndim != 4 or weights.shape[0] != batch or weights.shape[2:] != (tokens, tokens):
            raise ValueError(
                f"attention_weights [{batch}, heads, {tokens}, {tokens}] expected (as the states), "
                f"got {list(weights.shape)}"
            )
        received = _received(weights.detach()[:, :, 1:, :-1].float(), read)
    else:
        if (query is None) != (key is None):
            raise ValueError("query and key: both or neither expected, got one of them")
        if query is None or key is None:
            query = key = _unit_variance(states.detach())[:, None]
        for name, given in (("query", query), ("key", key)):
            if given.ndim != 4 or given.shape[0] != batch or given.shape[2] != tokens:
                raise ValueError(
                    f"{name} [{batch}, heads, {tokens}, D] expected (as the states), "
                    f"got {list(given.shape)}"
                )
        received = attention_received(
            query[:, :, 1:].detach(), key[:, :, :-1].detach(), key_mask=read
        )
    share = nn.functional.pad(received / fair_share(read, fading), (0, 1))
    return _filled(share, nn.functional.pad(read, (0, 1)), mask)


def _received(weights: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """As `attention_received`, of probabilities `[B, heads, S, S]` of which a part was cut off."""
    seen = torch.ones_like(weights[0, 0], dtype=torch.bool).tril() & read[:, None]
    weights = weights * (seen & read[..., None])[:, None]
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    readers = read.float().flip(1).cumsum(1).flip(1).clamp(min=1)
    return weights.mean(1).sum(1) / readers


def _unit_variance(states: torch.Tensor) -> torch.Tensor:
    """Each state scaled to a mean square of 1, in its own dtype; a state of 0 stays 0."""
    wide = states.float()
    scale = wide.square().mean(-1, keepdim=True)
    return (wide * torch.where(scale > 0, scale.rsqrt(), 0.0)).to(states.dtype)


def _without_first(losses: torch.Tensor, mask: torch.Tensor, predicted: bool) -> torch.Tensor:
    """The loss of a row's first real token, which nothing predicts, as the mean of the others."""
    first = mask & (mask.cumsum(1) == 1)
    if predicted:  # the first column has its prediction
        first[:, 0] = False
    return _filled(losses, mask & ~first, mask)


def _filled(scores: torch.Tensor, known: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scores with the row's mean of the known ones where `mask` wants others; 1 without any."""
    count = known.sum(1, keepdim=True)
    mean = torch.where(known, scores, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, 1.0)
    return torch.where(mask & ~known, mean, scores)


def _gradients(loss: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    if not states.requires_grad or not loss.requires_grad:
        raise ValueError(
            "gradient_based needs hidden_states with requires_grad=True and a loss computed from "
            "them with gradients enabled"
        )
    (found,) = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
    if found is None:
        raise ValueError("loss: one that depends on hidden_states expected")
    return found
