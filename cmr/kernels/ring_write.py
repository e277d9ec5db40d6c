"""Writing whole blocks into a ring of slots: slots, columns, chains, keys and values, index.

A ring has `slots` slots of `size` tokens each, and a cursor that counts the blocks ever written. A
write reserves slots once, links them once, and writes the heads of each layer and the index: one
launch each, and nothing that waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cmr.kernels._ops import register
from cmr.kernels.reference import ring_write as reference
from cmr.kernels.reference._shapes import expect_float, expect_same_dtype, expect_shape
from cmr.kernels.reference.quantise import LARGEST


class Reserved(NamedTuple):
    """Where n blocks go.

    Attributes:
        slots: [n] int64.
        predecessors: [n] int64, slot of the block before in the session's text, or -1.
        numbers: [n] int64, what the column `created` will hold.
    """

    slots: torch.Tensor
    predecessors: torch.Tensor
    numbers: torch.Tensor


class Columns(NamedTuple):
    """What a ring knows of each slot, and its cursor.

    Attributes:
        cursor: [1] int64, blocks ever written.
        session: [slots] int64, whose block it is; below 0: nobody's.
        created: [slots] int64, number of the block.
        successor: [slots] int64, slot of the next block of the text, or -1.
        predecessor: [slots] int64, slot of the block before, or -1.
        last_access: [slots] int64.
        access_count: [slots] int64.
        relevance: [slots] float32.
        token_ids: [slots, size] int64.
        positions: [slots, size] int64, -1 where there is no token.
    """

    cursor: torch.Tensor
    session: torch.Tensor
    created: torch.Tensor
    successor: torch.Tensor
    predecessor: torch.Tensor
    last_access: torch.Tensor
    access_count: torch.Tensor
    relevance: torch.Tensor
    token_ids: torch.Tensor
    positions: torch.Tensor


def _reserve(
    cursor: torch.Tensor,
    session: torch.Tensor,
    created: torch.Tensor,
    sessions: torch.Tensor,
    *out: torch.Tensor,
) -> None:
    found = reference.reserve(cursor, session, created, sessions)
    for tensor, value in zip(out, found, strict=True):
        tensor.copy_(value)


ring_reserve_ = register(
    "ring_reserve(Tensor cursor, Tensor session, Tensor created, Tensor sessions, "
    "Tensor(a!) slots, Tensor(b!) predecessors, Tensor(c!) numbers) -> ()",
    _reserve,
    "ring_write:ring_reserve",
    "cmr.write",
)


def ring_reserve(columns: Columns, sessions: torch.Tensor, out: Reserved | None = None) -> Reserved:
    """Slots for the next n blocks: those at the cursor, which hold the oldest ones.

    Nothing of the ring is changed: `ring_link` does that, after any number of writes.

    Args:
        columns: of the ring; `cursor`, `session` and `created` are read.
        sessions: [n] int64 of at least 0, each block's session, in the order of its text; n at
            most the number of slots, and may be 0.
        out: where to write the result; None: new tensors.

    Returns:
        See `Reserved`. A block's predecessor is its session's block before it in `sessions`, else
        the newest stored one (largest `created`) that these n blocks do not overwrite.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit, or n is more than there are slots.

    Equivalent PyTorch: `(cursor + torch.arange(n)) % slots`, and a search for the predecessors.
    """
    total = _expect_columns(columns)
    _expect_numbers("sessions", sessions, "n", None)
    count = sessions.shape[0]
    if count > total:
        raise ValueError(f"sessions: at most {total} blocks fit into the ring, got {count}")
    if out is None:
        out = Reserved(*(sessions.new_empty(count) for _ in range(3)))
    for name, tensor in zip(out._fields, out, strict=True):
        _expect_numbers(name, tensor, "n", count)
    ring_reserve_(columns.cursor, columns.session, columns.created, sessions, *out)
    return out


ring_link_ = register(
    "ring_link(Tensor(a!) cursor, Tensor(b!) session, Tensor(c!) created, Tensor(d!) successor, "
    "Tensor(e!) predecessor, Tensor(f!) last_access, Tensor(g!) access_count, "
    "Tensor(h!) relevance, Tensor(i!) token_ids, Tensor(j!) positions, Tensor slots, "
    "Tensor predecessors, Tensor numbers, Tensor sessions, Tensor? pick, Tensor new_token_ids, "
    "Tensor new_positions, Tensor? new_relevance) -> ()",
    reference.link,
    "ring_write:ring_link",
    "cmr.write",
)


def ring_link(
    columns: Columns,
    reserved: Reserved,
    sessions: torch.Tensor,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    relevance: torch.Tensor | None = None,
    pick: torch.Tensor | None = None,
) -> None:
    """Writes the columns of n new blocks, chains them to their sessions and moves the cursor.

    Chains that lead into an overwritten slot are cut there. The cursor becomes the last of
    `reserved.numbers`; accesses become 0.

    Args:
        columns: of the ring, changed in place.
        reserved: from `ring_reserve`. The slots may be any, but distinct; a predecessor is the
            last block of its session's chain, and no two blocks have the same one.
        sessions: [n] int64, as given to `ring_reserve`.
        token_ids: [B, T] int64.
        positions: [B, T] int64, in the session's text; -1 is padding.
        relevance: float32, one for each block of the text: [B, ceil(T / size)]; None: 0.
        pick: [n] int64, which blocks of the text are written: row * ceil(T / size) + number of the
            block in its row; behind T stand tokens 0 at positions -1. None: all of them.

    Raises:
        TypeError, ValueError: dtypes or shapes do not fit; nothing is written then.
        IndexError: a slot or a pick out of range (on a CPU; elsewhere a precondition).

    Equivalent PyTorch: `column[slots] = value` for each column.
    """
    total = _expect_columns(columns)
    for name, tensor in zip(reserved._fields, reserved, strict=True):
        _expect_numbers(name, tensor, "n", reserved.slots.shape[0])
    count = reserved.slots.shape[0]
    if count > total:
        raise ValueError(f"slots: at most {total} blocks fit into the ring, got {count}")
    _expect_numbers("sessions", sessions, "n", count)
    expect_shape("token_ids", token_ids, ("B", None), ("T", None))
    rows, tokens = token_ids.shape
    blocks = -(-tokens // columns.token_ids.shape[1])
    expect_shape("positions", positions, ("B", rows), ("T", tokens))
    expect_same_dtype("token_ids", token_ids, torch.int64)
    expect_same_dtype("positions", positions, torch.int64)
    if relevance is not None:
        expect_shape("relevance", relevance, ("B", rows), ("ceil(T / size)", blocks))
        expect_same_dtype("relevance", relevance, torch.float32)
    if pick is not None:
        _expect_numbers("pick", pick, "n", count)
    elif count != rows * blocks:
        raise ValueError(f"slots: one for each of {rows * blocks} blocks expected, got {count}")
    ring_link_(*columns, *reserved, sessions, pick, token_ids, positions, relevance)


ring_write_heads_ = register(
    "ring_write_heads(Tensor(a!) key_store, Tensor(b!)? value_store, Tensor slots, Tensor pick, "
    "Tensor keys, Tensor? values, Tensor? cos, Tensor? sin) -> ()",
    reference.write_heads,
    "ring_write:ring_write_heads",
    "cmr.write",
)


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
    expect_shape("key_store", key_store, ("slots", None), ("G", None), ("size", None), ("D", None))
    total, heads, size, width = key_store.shape
    expect_shape("keys", keys, ("B", None), ("G", heads), ("T", None), ("D", width))
    rows, _, tokens, _ = keys.shape
    _expect_store("key_store", key_store)
    expect_float("keys", keys)
    _expect_numbers("slots", slots, "n", None)
    _expect_numbers("pick", pick, "n", slots.shape[0])
    if (value_store is None) != (values is None):
        raise ValueError("value_store and values: both or none expected, got one")
    if value_store is not None and values is not None:
        expect_shape(
            "value_store", value_store, ("slots", total), ("G", heads), ("size", size), ("E", None)
        )
        wide = value_store.shape[3]
        expect_shape("values", values, ("B", rows), ("G", heads), ("T", tokens), ("E", wide))
        _expect_store("value_store", value_store)
        expect_float("values", values)
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin: both or none expected, got one")
    if cos is not None and sin is not None:
        expect_shape("cos", cos, ("B", rows), ("T", tokens), ("R", None))
        turned = cos.shape[2]
        expect_shape("sin", sin, ("B", rows), ("T", tokens), ("R", turned))
        if turned % 2 or turned > width:
            raise ValueError(f"cos: R even and at most D={width} expected, got {turned}")
        expect_same_dtype("cos", cos, torch.float32)
        expect_same_dtype("sin", sin, torch.float32)
    ring_write_heads_(key_store, value_store, slots, pick, keys, values, cos, sin)


ring_write_index_ = register(
    "ring_write_index(Tensor(a!) index, Tensor(b!)? scale, Tensor slots, Tensor pick, "
    "Tensor states) -> ()",
    reference.write_index,
    "ring_write:ring_write_index",
    "cmr.write",
)


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
    expect_shape("index", index, ("slots", None), ("size", None), ("H", None))
    total, size, hidden = index.shape
    expect_shape("states", states, ("B", None), ("T", None), ("H", hidden))
    expect_float("states", states)
    _expect_numbers("slots", slots, "n", None)
    _expect_numbers("pick", pick, "n", slots.shape[0])
    if index.dtype in LARGEST:
        if scale is None:
            raise ValueError(f"scale: a tensor expected for an index of {index.dtype}, got None")
        expect_shape("scale", scale, ("slots", total), ("size", size))
        expect_same_dtype("scale", scale, torch.float32)
        _expect_contiguous("scale", scale)
    else:
        expect_float("index", index)
        if scale is not None:
            raise ValueError(f"scale: None expected for an index of {index.dtype}, got a tensor")
    _expect_contiguous("index", index)
    ring_write_index_(index, scale, slots, pick, states)


def _expect_columns(columns: Columns) -> int:
    """The number of slots."""
    expect_shape("session", columns.session, ("slots", None))
    total = columns.session.shape[0]
    expect_shape("token_ids", columns.token_ids, ("slots", total), ("size", None))
    size = columns.token_ids.shape[1]
    expect_shape("cursor", columns.cursor, ("1", 1))
    expect_shape("positions", columns.positions, ("slots", total), ("size", size))
    for name, column in zip(columns._fields, columns, strict=True):
        if name not in ("cursor", "token_ids", "positions"):
            expect_shape(name, column, ("slots", total))
        wanted = torch.float32 if name == "relevance" else torch.int64
        expect_same_dtype(name, column, wanted)
        _expect_contiguous(name, column)
    return total


def _expect_numbers(name: str, tensor: torch.Tensor, letter: str, count: int | None) -> None:
    expect_shape(name, tensor, (letter, count))
    expect_same_dtype(name, tensor, torch.int64)
    _expect_contiguous(name, tensor)


def _expect_store(name: str, store: torch.Tensor) -> None:
    expect_float(name, store)
    if store.stride(-1) != 1:
        raise ValueError(f"{name}: a contiguous last axis expected, got stride {store.stride(-1)}")


def _expect_contiguous(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: a contiguous tensor expected, got strides {tensor.stride()}")
