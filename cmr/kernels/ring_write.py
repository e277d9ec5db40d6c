"""Writing whole blocks into the slots of a ring: keys and values of a layer, and the index."""

from __future__ import annotations

import torch

from cmr.kernels.arguments import CONTIGUOUS, FLOAT, expect
from cmr.kernels.attention import unrotate
from cmr.kernels.dispatch import register, runs_plain
from cmr.kernels.reference.quantise import LARGEST, quantise_rows


def ring_write_heads(
    key_store: torch.Tensor,
    value_store: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> None:
    """Writes blocks of keys, un-rotated, and of values into slots; or of states, as they are.

    Args:
        key_store: [slots, G, size, D], float32, float16 or bfloat16, changed in place.
        value_store: [slots, G, size, E] likewise, or None with `values` None.
        slots: [n] int64, distinct.
        pick: [n] int64, which blocks are written: row * ceil(T / size) + number of the block in
            its row; behind T stand zeros.
        keys: [B, G, T, D], any of these dtypes; for states G is 1.
        values: [B, G, T, E], any of these dtypes.
        cos: [B, T, R] float32, R <= D even: how the keys were rotated, in the half-split layout;
            features from R on were not. cos² + sin² need not be 1, but must not be 0. None: the
            keys were not rotated.
        sin: the same shape, or None with `cos` None.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit; nothing is written then.
        IndexError: a slot or a pick out of range (on a CPU; elsewhere a precondition).

    Source: Su et al., RoFormer (2021), inverted.

    Equivalent PyTorch: `key_store[slots] = unrotate(keys, cos, sin).unflatten(2, (-1, size))`,
    the picked blocks of it.
    """
    if (value_store is None) != (values is None):
        raise ValueError("value_store and values: both or none expected, got one")
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin: both or none expected, got one")
    sizes = expect(
        ("key_store", key_store, "slots G size D", FLOAT),
        ("value_store", value_store, "slots G size E", FLOAT),
        ("slots", slots, "n", torch.int64, CONTIGUOUS),
        ("pick", pick, "n", torch.int64, CONTIGUOUS),
        ("keys", keys, "B G T D", FLOAT),
        ("values", values, "B G T E", FLOAT),
        ("cos", cos, "B T R", torch.float32),
        ("sin", sin, "B T R", torch.float32),
    )
    for name, store in (("key_store", key_store), ("value_store", value_store)):
        if store is not None and store.stride(-1) != 1:
            stride = store.stride(-1)
            raise ValueError(f"{name}: a contiguous last axis expected, got stride {stride}")
    turned, width = sizes.get("R", 0), sizes["D"]
    if turned % 2 or turned > width:
        raise ValueError(f"cos: R even and at most D={width} expected, got {turned}")
    # Keys with a gradient go through the operation, below autograd: a store is no part of a graph.
    write = ring_write_heads_plain if runs_plain(keys, values) else ring_write_heads_
    write(key_store, value_store, slots, pick, keys, values, cos, sin)


def ring_write_index(
    index: torch.Tensor,
    scale: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    states: torch.Tensor,
) -> None:
    """Writes blocks of states into an index, each token's state scaled to norm 1.

    Args:
        index: [slots, size, H], contiguous, changed in place: float32, float16 or bfloat16; or
            torch.int8 or torch.float8_e4m3fn with `scale`, as `quantise_rows` makes them.
        scale: [slots, size] float32, contiguous, changed in place; None for an index of floats.
        slots: [n] int64, distinct.
        pick: [n] int64, which blocks are written: row * ceil(T / size) + number of the block in
            its row; behind T stand zeros.
        states: [B, T, H], float32, float16 or bfloat16; scaled in float32. A state that is all 0
            stays 0.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit; nothing is written then.
        IndexError: a slot or a pick out of range (on a CPU; elsewhere a precondition).

    Equivalent PyTorch: `index[slots] = F.normalize(states.float(), dim=-1).unflatten(1, (-1,
    size))`, the picked blocks of it, cast or quantised.
    """
    codes = index.dtype in LARGEST
    if codes != (scale is not None):
        wanted, got = ("a tensor", "None") if codes else ("None", "a tensor")
        raise ValueError(f"scale: {wanted} expected for an index of {index.dtype}, got {got}")
    expect(
        ("index", index, "slots size H", None if codes else FLOAT, CONTIGUOUS),
        ("scale", scale, "slots size", torch.float32, CONTIGUOUS),
        ("slots", slots, "n", torch.int64, CONTIGUOUS),
        ("pick", pick, "n", torch.int64, CONTIGUOUS),
        ("states", states, "B T H", FLOAT),
    )
    write = ring_write_index_plain if runs_plain(states) else ring_write_index_
    write(index, scale, slots, pick, states)


# -- the specifications --------------------------------------------------------------------------


def ring_write_heads_plain(
    key_store: torch.Tensor,
    value_store: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> None:
    """The specification of `ring_write_heads`, of arguments that were checked already."""
    if slots.numel() == 0:
        return
    block = key_store.shape[2]
    expect_numbers("slots", slots, key_store.shape[0])
    expect_numbers("pick", pick, keys.shape[0] * -(-keys.shape[2] // block))
    new = cut(keys.transpose(1, 2), pick, block, 0).transpose(1, 2)  # [n, G, block, D]
    if cos is not None and sin is not None:
        # Behind the last token the turn is none, 1 and 0: what is stored there stays 0, not NaN.
        new = unrotate(new, cut(cos, pick, block, 1), cut(sin, pick, block, 0))
    key_store.index_copy_(0, slots, new.to(key_store.dtype))
    if value_store is not None and values is not None:
        new = cut(values.transpose(1, 2), pick, block, 0).transpose(1, 2)
        value_store.index_copy_(0, slots, new.to(value_store.dtype))


def ring_write_index_plain(
    index: torch.Tensor,
    scale: torch.Tensor | None,
    slots: torch.Tensor,
    pick: torch.Tensor,
    states: torch.Tensor,
) -> None:
    """The specification of `ring_write_index`, of arguments that were checked already."""
    if slots.numel() == 0:
        return
    block = index.shape[1]
    expect_numbers("slots", slots, index.shape[0])
    expect_numbers("pick", pick, states.shape[0] * -(-states.shape[1] // block))
    new = cut(states, pick, block, 0).float()
    unit = new * inverse_norm(new).unsqueeze(-1)
    if scale is None:
        index.index_copy_(0, slots, unit.to(index.dtype))
        return
    codes, scales = quantise_rows(unit, index.dtype)
    # PyTorch has no index_copy_ of 8-bit floats: their bits are copied.
    index.view(torch.uint8).index_copy_(0, slots, codes.view(torch.uint8))
    scale.index_copy_(0, slots, scales)


def inverse_norm(states: torch.Tensor) -> torch.Tensor:
    """1 / Euclidean norm of each state; 0 for a state that is all 0, so that its cosines are 0.

    Args:
        states: [..., H], any float dtype.

    Returns:
        [...] float32.

    Raises:
        TypeError: not a float tensor.

    Equivalent PyTorch: `1 / states.float().norm(dim=-1)`.
    """
    if not states.is_floating_point():
        raise TypeError(f"states: a floating-point dtype expected, got {states.dtype}")
    # A norm is never taken in a narrower dtype than that of the states: PyTorch refuses to.
    wide = torch.promote_types(states.dtype, torch.float32)
    norms = torch.linalg.vector_norm(states, dim=-1, dtype=wide).float()
    return torch.where(norms == 0, 0.0, 1.0 / norms)


def cut(x: torch.Tensor, pick: torch.Tensor, block: int, fill: int) -> torch.Tensor:
    """The picked blocks [n, block, ...] of texts [B, T, ...]; `fill` stands behind the last token.

    Blocks are counted row by row: a pick is row * ceil(T / block) + number of the block.
    """
    tokens = x.shape[1]
    blocks = -(-tokens // block)
    # Whole blocks lie one behind the other already: they are copied once, not gathered by token.
    if blocks * block == tokens and x.is_contiguous():
        return x.view(-1, block, *x.shape[2:]).index_select(0, pick)
    row = torch.div(pick, blocks, rounding_mode="floor")
    at = (pick - row * blocks)[:, None] * block + torch.arange(block, device=x.device)
    new = x[row[:, None], at.clamp(max=tokens - 1)]
    real = (at < tokens).view(*at.shape, *[1] * (x.dim() - 2))
    return torch.where(real, new, fill)


def expect_numbers(name: str, numbers: torch.Tensor, count: int) -> None:
    """Raises IndexError unless all numbers are in [0, count), on a CPU.

    Elsewhere a look at them would wait for the device.
    """
    if numbers.device.type != "cpu" or not numbers.numel():
        return
    low, high = numbers.min().item(), numbers.max().item()
    if low < 0 or high >= count:
        raise IndexError(f"{name}: numbers in 0..{count - 1} expected, got {low}..{high}")


ring_write_heads_ = register(
    "ring_write_heads(Tensor(a!) key_store, Tensor(b!)? value_store, Tensor slots, Tensor pick, "
    "Tensor keys, Tensor? values, Tensor? cos, Tensor? sin) -> ()",
    ring_write_heads_plain,
    "ring_write:ring_write_heads",
    "cmr.write",
)
ring_write_index_ = register(
    "ring_write_index(Tensor(a!) index, Tensor(b!)? scale, Tensor slots, Tensor pick, "
    "Tensor states) -> ()",
    ring_write_index_plain,
    "ring_write:ring_write_index",
    "cmr.write",
)
