"""Stored states blended into a layer's input: similarity, softmax, weighted sum, fixed gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.dispatch import needs_gradient, register
from cmr.kernels.reference._paging import readable
from cmr.kernels.reference.attention import NEG_INF, wide


def reweave_residual_paged(
    states: torch.Tensor,
    store: torch.Tensor,
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    weight: torch.Tensor,
    temperature: float = 1.0,
    query_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds a similarity-weighted sum of stored states to a layer's input, with a fixed gate.

    h := (1 - w) h + w sum_i softmax_i(cos(h, m_i) / temperature) m_i, per token, over the readable
    tokens m_i of the chosen blocks. One launch on a GPU; no gradient flows.

    Args:
        states: [B, S, H], any float dtype (on a GPU float32, float16 or bfloat16); changed.
        store: [slots, block, H] stored states, same dtype.
        table: [B, M], as of `reweave_paged`.
        stamps: [B, M], the same.
        created: [slots], the same.
        positions: [slots, block], the same.
        weight: [B] float32, contiguous, the gate w in [0, 1].
        temperature: above 0; lower means that the nearest entry takes more.
        query_mask: None or [B, S] bool; False: that token is left as it is.

    Returns:
        `states`. Rows that read nothing, or whose w is 0, stay bit for bit.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: shapes or strides do not fit, the temperature is not above 0, or a gradient is
            asked for.

    Low-precision products accumulate in float32; the blend is float32.

    Source: the 'weighted sum' integration of contextual memory reweaving. Measured, it carries no
    usable recall; attention is the default.

    Equivalent PyTorch, of memory = store[table], the readable tokens of it:
        `states.lerp_(F.softmax(F.normalize(states) @ F.normalize(memory).mT / temperature, -1)
        @ memory, w)`.
    """
    expect(
        ("states", states, "B S H", FLOAT),
        ("store", store, "slots block H", "states"),
        ("table", table, "B M", torch.int64, CONTIGUOUS),
        ("stamps", stamps, "B M", torch.int64, CONTIGUOUS),
        ("created", created, "slots", torch.int64, CONTIGUOUS),
        ("positions", positions, "slots block", torch.int64, CONTIGUOUS),
        ("weight", weight, "B", torch.float32, CONTIGUOUS),
        ("query_mask", query_mask, "B S", torch.bool),
    )
    if not temperature > 0:
        raise ValueError(f"temperature: a number above 0 expected, got {temperature}")
    if needs_gradient(states, store, weight):
        raise ValueError("no gradient flows through states that are changed in place")
    reweave_residual_paged_(
        states, store, table, stamps, created, positions, weight, temperature, query_mask
    )
    return states


def reweave_residual_paged_plain(
    states: torch.Tensor,
    store: torch.Tensor,
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
    query_mask: torch.Tensor | None,
) -> None:
    """The specification of `reweave_residual_paged`, of arguments that were checked already."""
    batch, entries = table.shape
    slots, block, width = store.shape
    if 0 in (slots, entries * block):
        return
    mask = readable(table, stamps, created, positions)
    picked = store.index_select(0, table.clamp(min=0).reshape(-1))
    memory = picked.view(batch, entries * block, width)
    blended = weave_states(states, memory, mask, weight, temperature)
    if query_mask is not None:
        blended = torch.where(query_mask.unsqueeze(-1), blended, states)
    states.copy_(blended)


def weave_states(
    states: torch.Tensor,
    memory: torch.Tensor,
    mem_mask: torch.Tensor,
    weight: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """States [B, S, H] with memory [B, M, H] woven in where the mask allows; M is at least 1."""
    share = weight.view(-1, 1, 1)
    # Chosen, not multiplied by 0: what is hidden may be NaN.
    memory = torch.where(mem_mask.unsqueeze(-1), memory, 0.0)
    someone = mem_mask.any(1, keepdim=True)
    logits = wide(torch.bmm(_unit(states), _unit(memory).transpose(1, 2))) / temperature
    # A row without any entry keeps finite logits; it is put back below.
    logits = logits.masked_fill((~mem_mask & someone)[:, None], NEG_INF)
    recalled = torch.bmm(F.softmax(logits, -1).to(memory.dtype), memory)
    blended = ((1.0 - share) * states + share * recalled).to(states.dtype)
    return torch.where((share > 0) & someone[..., None], blended, states)


def _unit(states: torch.Tensor) -> torch.Tensor:
    return F.normalize(wide(states), dim=-1).to(states.dtype)


reweave_residual_paged_ = register(
    "reweave_residual_paged(Tensor(a!) states, Tensor store, Tensor table, Tensor stamps, "
    "Tensor created, Tensor positions, Tensor weight, float temperature, Tensor? query_mask) "
    "-> ()",
    reweave_residual_paged_plain,
    "reweave_residual:reweave_residual_paged",
    "cmr.reweave",
)
