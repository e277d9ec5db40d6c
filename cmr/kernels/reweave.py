"""Weaving recalled blocks into a layer, read where they are stored."""

from __future__ import annotations

import torch

from cmr.kernels._ops import register
from cmr.kernels.attention import expect_contiguous, needs_gradient, refuse_results
from cmr.kernels.reference import reweave as reference
from cmr.kernels.reference._shapes import (
    expect_bool,
    expect_float,
    expect_heads,
    expect_same_dtype,
    expect_shape,
)
from cmr.kernels.reference.reweave import reweave_attention, reweave_residual
from cmr.kernels.reference.reweave_residual import reweave_residual_paged as _residual

__all__ = ["reweave_attention", "reweave_paged", "reweave_residual", "reweave_residual_paged"]


def _reweave_paged(
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
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    query_mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    out: torch.Tensor,
    gate: torch.Tensor,
) -> None:
    found = reference.reweave_paged(
        query,
        key_store,
        value_store,
        table,
        stamps,
        created,
        positions,
        bias,
        local_out,
        local_lse,
        None if cos is None or sin is None else (cos, sin),
        query_mask,
        scale,
        softcap,
        compact=query.device.type == "cpu",
    )
    out.copy_(found[0])
    gate.copy_(found[1])


def _reweave_residual_paged(
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
    states.copy_(
        _residual(states, store, table, stamps, created, positions, weight, temperature, query_mask)
    )


reweave_paged_ = register(
    "reweave_paged(Tensor query, Tensor key_store, Tensor value_store, Tensor table, "
    "Tensor stamps, Tensor created, Tensor positions, Tensor bias, Tensor local_out, "
    "Tensor local_lse, Tensor? cos, Tensor? sin, Tensor? query_mask, float scale, "
    "float? softcap, Tensor(a!) out, Tensor(b!) gate) -> ()",
    _reweave_paged,
    "reweave:reweave_paged",
    "cmr.reweave",
)
reweave_residual_paged_ = register(
    "reweave_residual_paged(Tensor(a!) states, Tensor store, Tensor table, Tensor stamps, "
    "Tensor created, Tensor positions, Tensor weight, float temperature, Tensor? query_mask) "
    "-> ()",
    _reweave_residual_paged,
    "reweave_residual:reweave_residual_paged",
    "cmr.reweave",
)


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
    *,
    turn: tuple[torch.Tensor, torch.Tensor] | None = None,
    query_mask: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over chosen blocks of the ring, merged with finished local attention.

    As `reweave_attention`, with the blocks read where they are stored and the query rotated on the
    way: with lm the log-sum-exp of the memory's logits plus bias and ll that of the local ones,
    `g = sigmoid(lm - ll)`, `out = (1 - g) local + g sum(softmax(logits) values)`. Local attention
    may come in P parts (`attention_partials`), which are merged here. One launch on a GPU.

    Differentiable in the query and the local attention, by plain PyTorch, where a gradient is
    asked for.

    Args:
        query: [B, H, S, D], any float dtype (on a GPU float32, float16 or bfloat16), any strides.
        key_store: [slots, G, block, D], same dtype, H a multiple of G; what a readable token's row
            holds is finite, every other row may hold anything.
        value_store: the same shape, dtype and strides.
        table: [B, M] int64 slots, -1: none; M may be 0.
        stamps: [B, M] int64, `created` of each slot when it was chosen. Where the two differ the
            slot was given to other text since, and is not read.
        created: [slots] int64.
        positions: [slots, block] int64; a token below 0 is none.
        bias: [B] float32, added to the memory's logits: 0 is one joint softmax over memory and
            local keys, -inf turns memory off, +inf turns local attention off.
        local_out: [B, H, S, D] with any strides or, in parts, [P, B, H, S, D] contiguous; any float
            dtype.
        local_lse: [B, H, S] or [P, B, H, S] float32; -inf where a token sees nothing locally.
        turn: None, or cosine and sine [B, S, R] float32 of equal strides, the last 1; R even and
            at most D. The query's first R features are rotated by them in float32 (half-split
            layout).
        query_mask: None or [B, S] bool; False: that token does not read memory.
        scale: factor of q·k; None: D ** -0.5.
        softcap: None, or c > 0: logits become c tanh(x / c), before the bias.
        out: [B, H, S, D] in the query's dtype, any strides, to write into; None: a new one.
        gate: [B, H, S] float32 to write into; None: a new one.

    Returns:
        `out` and `gate`. A token that can read nothing, or whose bias is -inf, gets the local
        attention (bit for bit where it comes whole) and gate 0. A new `out` lies in memory as
        [B, S, H, D]. `table`, `stamps`, `created`, `positions`, `bias`, `local_lse` and `gate`
        have to be contiguous.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: shapes or strides do not fit, softcap is not above 0, or `out` or `gate` is
            given where a gradient is asked for.

    Changes only `out` and `gate`. Low-precision products accumulate in float32; the merge is
    float32.

    Source: Dao et al., FlashAttention (2022), section 3.1, for merging by log-sum-exp; Kwon et
    al., PagedAttention (2023), for reading through a table.

    Equivalent PyTorch: `reweave_attention(rotate(query), key_store[table]..., mask, ...)`.
    """
    whole = local_out.dim() == 4
    if whole:
        local_out, local_lse = local_out.unsqueeze(0), local_lse.unsqueeze(0)
    _check(query, key_store, value_store, bias, local_out, local_lse, turn, query_mask, softcap)
    _check_table(table, stamps, created, positions, query.shape[0], *key_store.shape[::2])
    batch, heads, steps, width = query.shape
    scale = width**-0.5 if scale is None else float(scale)
    if needs_gradient(query, key_store, value_store, bias, local_out, local_lse):
        refuse_results(out, gate)
        return reference.reweave_paged(
            query,
            key_store,
            value_store,
            table,
            stamps,
            created,
            positions,
            bias,
            local_out,
            local_lse,
            turn,
            query_mask,
            scale,
            softcap,
        )
    if out is None:
        out = query.new_empty(batch, steps, heads, width).transpose(1, 2)
    else:
        expect_shape("out", out, ("B", batch), ("H", heads), ("S", steps), ("D", width))
        expect_same_dtype("out", out, query.dtype)
    if gate is None:
        gate = query.new_empty(batch, heads, steps, dtype=torch.float32)
    else:
        expect_shape("gate", gate, ("B", batch), ("H", heads), ("S", steps))
        expect_contiguous("gate", gate, torch.float32)
    reweave_paged_(
        query,
        key_store,
        value_store,
        table,
        stamps,
        created,
        positions,
        bias,
        local_out,
        local_lse,
        *(turn or (None, None)),
        query_mask,
        scale,
        softcap,
        out,
        gate,
    )
    return out, gate


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
    """Blends chosen stored states into a layer's input, in place, with a fixed gate.

    h' = (1 - w) h + w sum_i softmax_i(cos(h, m_i) / temperature) m_i, per token, over the readable
    tokens of the chosen blocks. One launch on a GPU; no gradient flows.

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

    Source: as of `reweave_residual`.

    Equivalent PyTorch: `states.copy_(reweave_residual(states, store[table], mask, weight))`.
    """
    expect_shape("states", states, ("B", None), ("S", None), ("H", None))
    expect_float("states", states)
    batch, steps, width = states.shape
    expect_shape("store", store, ("slots", None), ("block", None), ("H", width))
    expect_same_dtype("store", store, states.dtype)
    _check_table(table, stamps, created, positions, batch, *store.shape[:2])
    expect_shape("weight", weight, ("B", batch))
    expect_contiguous("weight", weight, torch.float32)
    if not temperature > 0:
        raise ValueError(f"temperature: a number above 0 expected, got {temperature}")
    _check_query_mask(query_mask, batch, steps)
    if needs_gradient(states, store, weight):
        raise ValueError("no gradient flows through states that are changed in place")
    reweave_residual_paged_(
        states, store, table, stamps, created, positions, weight, temperature, query_mask
    )
    return states


def _check(
    query: torch.Tensor,
    key_store: torch.Tensor,
    value_store: torch.Tensor,
    bias: torch.Tensor,
    local_out: torch.Tensor,
    local_lse: torch.Tensor,
    turn: tuple[torch.Tensor, torch.Tensor] | None,
    query_mask: torch.Tensor | None,
    softcap: float | None,
) -> None:
    expect_shape("query", query, ("B", None), ("H", None), ("S", None), ("D", None))
    expect_float("query", query)
    batch, heads, steps, width = query.shape
    expect_shape(
        "key_store", key_store, ("slots", None), ("G", None), ("block", None), ("D", width)
    )
    slots, groups, block, _ = key_store.shape
    expect_shape(
        "value_store", value_store, ("slots", slots), ("G", groups), ("block", block), ("D", width)
    )
    expect_same_dtype("key_store", key_store, query.dtype)
    expect_same_dtype("value_store", value_store, query.dtype)
    _expect_strides("value_store", value_store, key_store)
    expect_heads(query, key_store)
    expect_shape("bias", bias, ("B", batch))
    expect_contiguous("bias", bias, torch.float32)
    rows = ("B", batch), ("H", heads), ("S", steps)
    expect_shape("local_out", local_out, ("P", None), *rows, ("D", width))
    expect_float("local_out", local_out)
    expect_shape("local_lse", local_lse, ("P", local_out.shape[0]), *rows)
    expect_contiguous("local_lse", local_lse, torch.float32)
    if local_out.shape[0] > 1:
        expect_contiguous("local_out", local_out, local_out.dtype)
    if turn is not None:
        cos, sin = turn
        expect_shape("cos", cos, ("B", batch), ("S", steps), ("R", None))
        expect_shape("sin", sin, ("B", batch), ("S", steps), ("R", cos.shape[2]))
        for name, tensor in (("cos", cos), ("sin", sin)):
            expect_same_dtype(name, tensor, torch.float32)
            if tensor.shape[2] % 2 or not 0 < tensor.shape[2] <= width or tensor.stride(2) != 1:
                raise ValueError(
                    f"{name}: an even number of features up to D={width} side by side expected, "
                    f"got {tensor.shape[2]} with strides {tensor.stride()}"
                )
        _expect_strides("sin", sin, cos)
    _check_query_mask(query_mask, batch, steps)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: a number above 0 expected, got {softcap}")


def _expect_strides(name: str, tensor: torch.Tensor, other: torch.Tensor) -> None:
    if tensor.stride() != other.stride():
        raise ValueError(f"{name}: strides {other.stride()} expected, got {tensor.stride()}")


def _check_table(
    table: torch.Tensor,
    stamps: torch.Tensor,
    created: torch.Tensor,
    positions: torch.Tensor,
    batch: int,
    slots: int,
    block: int,
) -> None:
    expect_shape("table", table, ("B", batch), ("M", None))
    expect_shape("stamps", stamps, ("B", batch), ("M", table.shape[1]))
    expect_shape("created", created, ("slots", slots))
    expect_shape("positions", positions, ("slots", slots), ("block", block))
    for name, tensor in (
        ("table", table),
        ("stamps", stamps),
        ("created", created),
        ("positions", positions),
    ):
        expect_contiguous(name, tensor, torch.int64)


def _check_query_mask(query_mask: torch.Tensor | None, batch: int, steps: int) -> None:
    if query_mask is not None:
        expect_shape("query_mask", query_mask, ("B", batch), ("S", steps))
        expect_bool("query_mask", query_mask)
