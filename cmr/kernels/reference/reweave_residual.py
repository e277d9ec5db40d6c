"""Stored states blended into a layer's input: similarity, softmax, weighted sum, fixed gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.reference._paging import readable
from cmr.kernels.reference._shapes import expect_bool, expect_float, expect_same_dtype, expect_shape
from cmr.kernels.reference.attention import NEG_INF, wide


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
    logits = wide(cosines) / temperature
    if mem_mask is not None:
        # A row without any entry keeps finite logits; it is put back below.
        hidden = ~mem_mask & mem_mask.any(1, keepdim=True)
        logits = logits.masked_fill(hidden[:, None], NEG_INF)
    recalled = torch.bmm(F.softmax(logits, -1).to(memory.dtype), memory)
    blended = ((1.0 - share) * states + share * recalled).to(states.dtype)
    return torch.where(reads, blended, states)


def reweave_residual_paged(
    states: torch.Tensor,
    store: torch.Tensor,
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
    query_mask: torch.Tensor | None,
) -> torch.Tensor:
    """`reweave_residual` over the blocks of a table; arguments as of the operation, checked.

    Returns:
        The new states [B, S, H]; changes nothing in place.
    """
    batch, entries = table.shape
    slots, block, width = store.shape
    if 0 in (slots, entries * block):
        return states.clone()
    mask = readable(table, stamps, created, positions)
    picked = store.index_select(0, table.clamp(min=0).reshape(-1))
    memory = picked.view(batch, entries * block, width)
    blended = reweave_residual(states, memory, mask, weight, temperature)
    if query_mask is None:
        return blended
    return torch.where(query_mask.unsqueeze(-1), blended, states)


def _unit(states: torch.Tensor) -> torch.Tensor:
    return F.normalize(wide(states), dim=-1).to(states.dtype)
