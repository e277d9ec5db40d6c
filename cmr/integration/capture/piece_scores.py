"""What each token of a piece of text is worth, before it is compared with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.kernels.attention import rotate
from cmr.kernels.score import surprise
from cmr.memory.token_scores import gradient_times_state, token_scores

LOGIT_BYTES = 32 << 20
"""Most bytes of logits at once."""


@dataclass(frozen=True)
class Piece:
    """What the reader knows of a piece of text that has just gone through the model.

    Attributes:
        token_ids: `[batch, tokens]`.
        positions: `[batch, tokens]` as the rotary embedding was given them.
        index: `[batch, tokens, hidden]` states at the index layer.
        mask: `[batch, tokens]` bool, True for tokens that are no padding and may be stored.
        first: whether the texts start with this piece.
        before: `[batch, hidden]` state in front of the head of the token before the piece; None
            unless asked for, and in the first piece.
        final: `[batch, tokens, hidden]` states in front of the head; None unless asked for.
        source: the index layer's states in the graph that `final` was computed from; None unless
            gradients were asked for.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor
    first: bool
    before: torch.Tensor | None = None
    final: torch.Tensor | None = None
    source: torch.Tensor | None = None


def raw_scores(
    adapter: ModelAdapter, layer: int, piece: Piece, methods: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Scores of a piece's tokens at the index layer, `[batch, tokens]` float32 by method."""
    found = {}
    if "variance_based" in methods:
        found["variance_based"] = token_scores("variance_based", piece.index, piece.mask)
    if "attention_based" in methods:
        mask = piece.mask
        if piece.first:
            # A text's first token is its sink: what it receives says nothing.
            mask = mask.clone()
            mask[:, 0] = False
        found["attention_based"] = attention_received(
            adapter, layer, piece.index, piece.positions, mask
        )
    if "surprise" in methods or "gradient_based" in methods:
        losses, gradients = _losses(adapter, piece, "gradient_based" in methods)
        found["surprise"] = losses
        if gradients is not None:
            found["gradient_based"] = gradients
    return {name: found[name] for name in methods}


def attention_received(
    adapter: ModelAdapter,
    layer: int,
    states: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor,
    reach: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention that tokens receive at a layer from those behind them, `[batch, tokens]` float32.

    Of `states` `[batch, tokens, hidden]` that enter it; tokens whose `mask` is False get 0. See
    `ModelAdapter.rotary` for `positions` and `reach`.
    """
    query = adapter.queries(layer, states)
    key, _ = adapter.keys_values(layer, states)
    if adapter.rotates(layer):
        turn = adapter.rotary(layer, positions.to(states.device), reach)
        query, key = rotate(query, *turn), rotate(key, *turn)
    scale = getattr(adapter.attention(layer), "scaling", None)
    if scale is not None:
        # `token_scores` divides logits by the root of the width: some models scale otherwise.
        query = query * (scale * query.shape[-1] ** 0.5)
    found = token_scores("attention_based", states, mask, query=query, key=key)
    return found.masked_fill(~mask, 0.0)


def _losses(
    adapter: ModelAdapter, piece: Piece, gradients: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Each token's own loss, and |g·h| of the losses' sum at the index layer where asked for."""
    final = piece.final
    assert final is not None
    ids, mask = piece.token_ids.to(final.device), piece.mask.to(final.device)
    previous = None if piece.before is None else _head(adapter, piece.before)
    batch, tokens = ids.shape
    # The logits of a piece at once would be larger than all else: slices of them, never kept. Their
    # gradients by the final states are gathered, and go back through the layers once, at the end.
    row_bytes = adapter.config.vocab_size * final.element_size()
    step = max(1, LOGIT_BYTES // max(1, batch * row_bytes))
    losses = torch.empty(batch, tokens, device=final.device)
    back = torch.zeros_like(final) if gradients else None
    for start in range(0, tokens, step):
        part = final[:, start : start + step].detach()
        if back is None:
            logits = _head(adapter, part)
        else:
            logits, back[:, start : start + step] = _backward(
                adapter, part, ids[:, start + 1 : start + step + 1], mask[:, start + 1 :]
            )
        losses[:, start : start + step] = surprise(logits, ids[:, start : start + step], previous)
        previous = logits[:, -1]
    if piece.before is None:
        # Nothing predicts a text's first token: it gets the mean of the others.
        rest = mask[:, 1:]
        losses[:, 0] = (losses[:, 1:] * rest).sum(1) / rest.sum(1).clamp(min=1)
    losses = losses.to(piece.index.device)
    if back is None:
        return losses, None
    assert piece.source is not None
    (found,) = torch.autograd.grad(final, piece.source, back)
    return losses, gradient_times_state(found, piece.source)


def _backward(
    adapter: ModelAdapter, final: torch.Tensor, following: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a slice, and the gradient of the following tokens' losses by its states."""
    # A text made in inference mode could not be kept for the way back.
    following = following.clone()
    known = following.shape[1]
    with torch.enable_grad():
        leaf = final.requires_grad_()
        logits = _head(adapter, leaf)
        # Flat: several times as fast on a CPU as over a batch.
        losses = nn.functional.cross_entropy(
            logits[:, :known].float().flatten(0, 1), following.flatten(), reduction="none"
        )
        (found,) = torch.autograd.grad((losses * mask[:, :known].flatten()).sum(), leaf)
    return logits.detach(), found


def _head(adapter: ModelAdapter, states: torch.Tensor) -> torch.Tensor:
    """Logits of final states, as the model gives them."""
    head = adapter.model.get_output_embeddings()
    logits = head(states.to(head.weight.device))
    cap = getattr(adapter.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
