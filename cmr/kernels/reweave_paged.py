"""Weaving recalled blocks into a layer, read where they are stored."""

from __future__ import annotations

from typing import Any

import torch

from cmr.kernels.again import Again, Tensors
from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.attention import attend, rotate
from cmr.kernels.attention_partials import merge_partials
from cmr.kernels.dispatch import needs_gradient, register
from cmr.kernels.reference._paging import gather, readable
from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.reweave import blend

AGAIN = Again()


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
    cos, sin = turn or (None, None)
    tensors: Tensors = (
        query, key_store, value_store, table, stamps, created, positions, bias,
        local_out, local_lse, cos, sin, query_mask, out, gate,
    )  # fmt: skip
    numbers = scale, softcap
    if out is not None and gate is not None and AGAIN.launched(tensors, *numbers):
        return out, gate
    if local_out.dim() == 4:  # whole: one part
        local_out, local_lse = local_out.unsqueeze(0), local_lse.unsqueeze(0)
    # Whole, local attention is the model's own tensor of any strides; parts are made by us.
    parts_layout = [CONTIGUOUS] if len(local_out) > 1 else []
    sizes = expect(
        ("query", query, "B H S D", FLOAT),
        ("key_store", key_store, "slots G block D", "query"),
        ("value_store", value_store, "slots G block D", "query"),
        ("table", table, "B M", torch.int64, CONTIGUOUS),
        ("stamps", stamps, "B M", torch.int64, CONTIGUOUS),
        ("created", created, "slots", torch.int64, CONTIGUOUS),
        ("positions", positions, "slots block", torch.int64, CONTIGUOUS),
        ("bias", bias, "B", torch.float32, CONTIGUOUS),
        ("local_out", local_out, "P B H S D", FLOAT, *parts_layout),
        ("local_lse", local_lse, "P B H S", torch.float32, CONTIGUOUS),
        ("cos", cos, "B S R", torch.float32),
        ("sin", sin, "B S R", torch.float32),
        ("query_mask", query_mask, "B S", torch.bool),
        ("out", out, "B H S D", "query"),
        ("gate", gate, "B H S", torch.float32, CONTIGUOUS),
    )
    width = sizes["D"]
    # The kernel reads keys and values by one set of offsets.
    _expect_strides("value_store", value_store, key_store)
    if cos is not None and sin is not None:
        if cos.shape[2] % 2 or not 0 < cos.shape[2] <= width or cos.stride(2) != 1:
            raise ValueError(
                f"cos: an even number of features up to D={width} side by side expected, "
                f"got {cos.shape[2]} with strides {cos.stride()}"
            )
        _expect_strides("sin", sin, cos)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: a number above 0 expected, got {softcap}")
    scale = width**-0.5 if scale is None else float(scale)
    blocks = (key_store, value_store, table, stamps, created, positions)
    rest: tuple[Any, ...] = (
        bias, local_out, local_lse, cos, sin, query_mask, scale, softcap,
    )  # fmt: skip
    if needs_gradient(query, key_store, value_store, bias, local_out, local_lse):
        if out is not None or gate is not None:
            raise ValueError("no gradient flows through results that are given: expected None")
        return read_blocks(query, *blocks, *rest)
    batch, heads, steps = query.shape[:3]
    if out is None:
        out = query.new_empty(batch, steps, heads, width).transpose(1, 2)
    if gate is None:
        gate = query.new_empty(batch, heads, steps, dtype=torch.float32)
    AGAIN.launch(reweave_paged_, (query, *blocks, *rest, out, gate), tensors, *numbers)
    return out, gate


def read_blocks(
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
    *,
    compact: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reweave_paged` of arguments that were checked already, with local attention in parts.

    With `compact` a single row gathers its readable tokens only, and needs no mask; their number
    comes from the tensors, so that this cannot be traced. Differentiable in the query and the local
    attention.
    """
    local, lse = merge_partials(local_out, local_lse)
    # Nothing to read: the local attention as it is, in new tensors, which the caller may change.
    if 0 in (key_store.shape[0], table.shape[1] * key_store.shape[2]):
        return local.to(query.dtype, copy=True), torch.zeros_like(lse)
    mask = readable(table, stamps, created, positions)
    seen = None
    per_row: torch.Tensor | float = bias.view(-1, 1, 1)
    # Numbers are read from tensors here, which on a CPU costs nothing and on a GPU would wait.
    if compact and len(table) == 1:
        per_row = float(bias)
        columns = None if bool(mask.all()) else mask[0].nonzero()[:, 0]
        if per_row == NEG_INF or (columns is not None and not len(columns)):
            return local.to(query.dtype, copy=True), torch.zeros_like(lse)
        keys, values = gather((key_store, value_store), table, columns)
    else:
        keys, values = gather((key_store, value_store), table)
        # Rows that may not be read hold anything, NaN too, and 0 times NaN is NaN.
        hidden = ~mask[:, None, :, None]
        keys, values = keys.masked_fill(hidden, 0.0), values.masked_fill(hidden, 0.0)
        seen = mask[:, None, None]
    if cos is not None and sin is not None:
        query = rotate(query, cos, sin)
    recalled, mem_lse = attend(query, keys, values, seen, False, scale, softcap)
    reads = None if seen is None else mem_lse != NEG_INF
    return blend(recalled, mem_lse, per_row, local, lse, reads, query_mask)


def reweave_paged_plain(query: torch.Tensor, *rest: Any) -> None:
    """The specification of `reweave_paged`, of arguments as the registered operation has them."""
    *given, out, gate = rest
    found = read_blocks(query, *given, compact=query.device.type == "cpu")
    out.copy_(found[0])
    gate.copy_(found[1])


def _expect_strides(name: str, tensor: torch.Tensor, other: torch.Tensor) -> None:
    if tensor.stride() != other.stride():
        raise ValueError(f"{name}: strides {other.stride()} expected, got {tensor.stride()}")


reweave_paged_ = register(
    "reweave_paged(Tensor query, Tensor key_store, Tensor value_store, Tensor table, "
    "Tensor stamps, Tensor created, Tensor positions, Tensor bias, Tensor local_out, "
    "Tensor local_lse, Tensor? cos, Tensor? sin, Tensor? query_mask, float scale, "
    "float? softcap, Tensor(a!) out, Tensor(b!) gate) -> ()",
    reweave_paged_plain,
    "reweave_paged:reweave_paged",
    "cmr.reweave",
)
