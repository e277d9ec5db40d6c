"""Weaving recalled memory into a layer: weights from similarity, weighted sum, gate, blend."""

from __future__ import annotations

import torch

from cmr.kernels.reference._paging import gather, readable
from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_float,
    expect_heads,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference.attention import NEG_INF, attend, merge_partials, wide
from cmr.kernels.reference.reweave_residual import reweave_residual
from cmr.kernels.reference.rotary import rotate

__all__ = ["reweave_attention", "reweave_paged", "reweave_residual"]


def reweave_attention(
    query: torch.Tensor,
    mem_keys: torch.Tensor,
    mem_values: torch.Tensor,
    mem_mask: torch.Tensor | None,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    bias: torch.Tensor | float = 0.0,
    scale: float | None = None,
    softcap: float | None = None,
    query_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merges attention over memory with finished local attention, by their log-sum-exps.

    With lm the log-sum-exp of the memory's logits plus bias and ll that of the local ones:
    `g = sigmoid(lm - ll)`, `out = (1 - g) local_out + g sum(softmax(logits + bias) values)`.
    Bias 0 is one joint softmax over memory and local keys; logit(w) makes w of an even match.

    Args:
        query: [B, H, S, D], any float dtype, rotated for the memory's positions.
        mem_keys: [B, G, M, D], same dtype, H a multiple of G; M may be 0.
        mem_values: [B, G, M, D], same dtype. Both finite, also where the mask hides them.
        mem_mask: bool, True = readable: [B, M] for all tokens or [B, S, M] per token. None: all.
        local_out: [B, H, S, D], the local attention, same dtype.
        local_lse: [B, H, S] float32; -inf where a token sees nothing locally.
        bias: added to the memory's logits: a number, or float of shape [], [B] or [B, M]. -inf
            turns memory off (per entry: hides it); +inf (not per entry) turns local attention off.
            Masks shared by many layers are cheapest as a [B, M] bias in the query's dtype.
        scale: factor of q·k; None: D ** -0.5.
        softcap: None, or c > 0: logits become c tanh(x / c), before the bias.
        query_mask: None or [B, S] bool; False: that token does not read memory.

    Returns:
        out [B, H, S, D] in the query's dtype and gate g [B, H, S] float32. A token that can read
        nothing, or whose bias is -inf, gets `local_out` bit for bit and gate 0.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: shapes do not fit, or softcap is not above 0.

    Changes nothing in place. Low-precision products accumulate in float32; the merge is float32.

    Source: Dao et al., FlashAttention (2022), section 3.1, for merging by log-sum-exp; the gate
    and its bias are this project's.

    Equivalent PyTorch (bias 0, everything readable):
        `F.scaled_dot_product_attention(query, torch.cat([mem_keys, key], 2),
        torch.cat([mem_values, value], 2), scale=scale, enable_gqa=True)`.
    """
    _check(query, mem_keys, mem_values, mem_mask, local_out, local_lse, query_mask, softcap)
    batch, width, entries = query.shape[0], query.shape[3], mem_keys.shape[2]
    per_row: torch.Tensor | float
    if not isinstance(bias, torch.Tensor):
        per_row, per_entry, off = bias, None, bias == NEG_INF
    elif bias.shape == (batch, entries):
        per_row, per_entry, off = 0.0, bias, False
    elif bias.shape in ((), (batch,)):
        per_row, per_entry, off = bias.view(-1, 1, 1), None, False
    else:
        raise ValueError(
            f"bias: a number or shape [B={batch}] or [B={batch}, M={entries}] expected, "
            f"got {list(bias.shape)}"
        )
    if entries == 0 or off:
        return local_out.clone(), torch.zeros_like(local_lse, dtype=torch.float32)
    recalled, mem_lse = attend(
        query,
        mem_keys,
        mem_values,
        mask=_memory_mask(mem_mask, per_entry),
        is_causal=False,
        scale=width**-0.5 if scale is None else scale,
        softcap=softcap,
    )
    reads = None
    if mem_mask is not None or per_entry is not None:
        reads = mem_lse != NEG_INF
    return _blend(recalled, mem_lse, per_row, local_out, local_lse, reads, query_mask)


def reweave_paged(
    query: torch.Tensor,
    key_store: torch.Tensor,
    value_store: torch.Tensor,
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    bias: torch.Tensor,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor] | None,
    query_mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    compact: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reweave_attention` over the blocks of a table.

    The arguments are those of `cmr.kernels.reweave.reweave_paged`, checked, with the dimension of
    parts of `local_out` and `local_lse` always there. With `compact` a single row gathers its
    readable tokens only, and needs no mask; their number comes from the tensors, so that this
    cannot be traced. Differentiable in the query and the local attention.
    """
    local, lse = merge_partials(local_out, local_lse)
    if 0 in (key_store.shape[0], table.shape[1] * key_store.shape[2]):
        return local.to(query.dtype, copy=True), torch.zeros_like(lse)
    mask: torch.Tensor | None = readable(table, stamps, created, positions)
    assert mask is not None
    per_row: torch.Tensor | float = bias.view(-1, 1, 1)
    if compact and len(table) == 1:
        per_row = float(bias)
        columns = None if bool(mask.all()) else mask[0].nonzero()[:, 0]
        if per_row == NEG_INF or (columns is not None and not len(columns)):
            return local.to(query.dtype, copy=True), torch.zeros_like(lse)
        keys, values = gather((key_store, value_store), table, columns)
        mask = None
    else:
        keys, values = gather((key_store, value_store), table)
        hidden = ~mask[:, None, :, None]  # where anything may stand, NaN too
        keys, values = keys.masked_fill(hidden, 0.0), values.masked_fill(hidden, 0.0)
    if turn is not None:
        query = rotate(query, *turn)
    seen = _memory_mask(mask, None)
    recalled, mem_lse = attend(query, keys, values, seen, False, scale, softcap)
    reads = None if mask is None else mem_lse != NEG_INF
    return _blend(recalled, mem_lse, per_row, local, lse, reads, query_mask)


def _blend(
    recalled: torch.Tensor,
    mem_lse: torch.Tensor,
    per_row: torch.Tensor | float,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    reads: torch.Tensor | None,
    query_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge by log-sum-exp, and the gate; rows that do not read keep the local attention."""
    gate = torch.sigmoid(mem_lse + per_row - local_lse)
    if isinstance(per_row, torch.Tensor):
        reads = _both(reads, per_row != NEG_INF)
    if query_mask is not None:
        reads = _both(reads, query_mask[:, None])
    share = gate.unsqueeze(-1)
    if recalled.dtype == torch.float64:
        share = share.double()
    blended = torch.lerp(wide(local_out), wide(recalled), share).to(recalled.dtype)
    if reads is None:
        return blended, gate
    gate = torch.where(reads, gate, 0.0)
    return torch.where(reads.unsqueeze(-1), blended, local_out.to(recalled.dtype)), gate


def _memory_mask(
    mem_mask: torch.Tensor | None, per_entry: torch.Tensor | None
) -> torch.Tensor | None:
    """Mask and per-entry bias as one attention mask, [B, 1, 1 or S, M]; None: nothing to add."""
    if mem_mask is not None:
        mem_mask = mem_mask[:, None, None] if mem_mask.dim() == 2 else mem_mask[:, None]
    if per_entry is None:
        return mem_mask
    added = per_entry[:, None, None]
    return added if mem_mask is None else torch.where(mem_mask, added, NEG_INF)


def _both(first: torch.Tensor | None, second: torch.Tensor) -> torch.Tensor:
    return second if first is None else first & second


def _check(
    query: torch.Tensor,
    mem_keys: torch.Tensor,
    mem_values: torch.Tensor,
    mem_mask: torch.Tensor | None,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    query_mask: torch.Tensor | None,
    softcap: float | None,
) -> None:
    expect_shape("query", query, ("B", None), ("H", None), ("S", None), ("D", None))
    batch, heads, steps, width = query.shape
    expect_shape("mem_keys", mem_keys, ("B", batch), ("G", None), ("M", None), ("D", width))
    groups, entries = mem_keys.shape[1], mem_keys.shape[2]
    memory = ("B", batch), ("G", groups), ("M", entries), ("D", width)
    expect_shape("mem_values", mem_values, *memory)
    expect_shape("local_out", local_out, ("B", batch), ("H", heads), ("S", steps), ("D", width))
    expect_shape("local_lse", local_lse, ("B", batch), ("H", heads), ("S", steps))
    expect_float("query", query)
    for name, tensor in (("mem_keys", mem_keys), ("mem_values", mem_values)):
        expect_same_dtype(name, tensor, query.dtype)
    expect_same_dtype("local_out", local_out, query.dtype)
    expect_heads(query, mem_keys)
    if mem_mask is not None:
        if isinstance(mem_mask, torch.Tensor) and mem_mask.dim() == 3:
            expect_shape("mem_mask", mem_mask, ("B", batch), ("S", steps), ("M", entries))
        else:
            expect_shape("mem_mask", mem_mask, ("B", batch), ("M", entries))
        expect_bool("mem_mask", mem_mask)
    if query_mask is not None:
        expect_shape("query_mask", query_mask, ("B", batch), ("S", steps))
        expect_bool("query_mask", query_mask)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: a number above 0 expected, got {softcap}")
