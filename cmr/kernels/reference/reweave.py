"""Weaving recalled memory into a layer: weights from similarity, weighted sum, gate, blend."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_float,
    expect_heads,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference.attention import NEG_INF, attend


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
    gate = torch.sigmoid(mem_lse + per_row - local_lse)
    reads = None
    if mem_mask is not None or per_entry is not None:
        reads = mem_lse != NEG_INF
    if isinstance(per_row, torch.Tensor):
        reads = _both(reads, per_row != NEG_INF)
    if query_mask is not None:
        reads = _both(reads, query_mask[:, None])
    share = gate.unsqueeze(-1)
    if query.dtype == torch.float64:
        share = share.double()
    blended = torch.lerp(_wide(local_out), _wide(recalled), share).to(query.dtype)
    if reads is None:
        return blended, gate
    gate = torch.where(reads, gate, 0.0)
    return torch.where(reads.unsqueeze(-1), blended, local_out), gate


def reweave_residual(
    states: torch.Tensor,
    memory: torch.Tensor,
    mem_mask: torch.Tensor | None,
    weight: torch.Tensor | float,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Adds a similarity-weighted sum of stored states to a layer's input, with a fixed gate.

    h' = (1 - w) h + w sum_i softmax_i(cos(h, m_i) / temperature) m_i, per token.

    Args:
        states: [B, S, H], any float dtype.
        memory: [B, M, H], same dtype; M may be 0.
        mem_mask: [B, M] bool, True = readable; None: all. Hidden entries may hold NaN.
        weight: the gate w in [0, 1]: a number, or [B] float.
        temperature: above 0; lower means that the nearest entry takes more.

    Returns:
        [B, S, H] in the states' dtype. Rows without a readable entry, or with w = 0, come back
        bit for bit.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: shapes do not fit, a number outside its range.

    Changes nothing in place. Low-precision products accumulate in float32; the blend is float32.

    Source: the 'weighted sum' integration of contextual memory reweaving. Measured, it carries no
    usable recall; attention is the default.

    Equivalent PyTorch:
        `(1 - w) * states + w * F.softmax(F.normalize(states) @ F.normalize(memory).mT
        / temperature, -1) @ memory`.
    """
    expect_shape("states", states, ("B", None), ("S", None), ("H", None))
    batch, _, width = states.shape
    expect_shape("memory", memory, ("B", batch), ("M", None), ("H", width))
    expect_float("states", states)
    expect_same_dtype("memory", memory, states.dtype)
    if not temperature > 0:
        raise ValueError(f"temperature: a number above 0 expected, got {temperature}")
    if mem_mask is not None:
        expect_shape("mem_mask", mem_mask, ("B", batch), ("M", memory.shape[1]))
        expect_bool("mem_mask", mem_mask)
    share = torch.as_tensor(weight, device=states.device, dtype=torch.float32)
    if share.shape not in ((), (batch,)):
        raise ValueError(f"weight: a number or shape [B={batch}] expected, got {list(share.shape)}")
    if isinstance(weight, (int, float)) and not 0 <= weight <= 1:
        raise ValueError(f"weight: a number in [0, 1] expected, got {weight}")
    if memory.shape[1] == 0:
        return states.clone()
    share = share.view(-1, 1, 1)
    reads = share > 0
    if mem_mask is not None:
        memory = torch.where(mem_mask.unsqueeze(-1), memory, 0.0)
        reads = reads & mem_mask.any(1).view(-1, 1, 1)
    cosines = torch.bmm(_unit(states), _unit(memory).transpose(1, 2))
    logits = _wide(cosines) / temperature
    if mem_mask is not None:
        # A row without any entry keeps finite logits; it is put back below.
        hidden = ~mem_mask & mem_mask.any(1, keepdim=True)
        logits = logits.masked_fill(hidden[:, None], NEG_INF)
    recalled = torch.bmm(F.softmax(logits, -1).to(memory.dtype), memory)
    blended = ((1.0 - share) * states + share * recalled).to(states.dtype)
    return torch.where(reads, blended, states)


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


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _unit(states: torch.Tensor) -> torch.Tensor:
    return F.normalize(_wide(states), dim=-1).to(states.dtype)


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
