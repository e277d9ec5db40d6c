"""The writes into a ring, with inputs for them."""

from __future__ import annotations

import torch

from cmr.kernels.ring_link import Columns, ring_link
from cmr.kernels.ring_write import ring_write_heads, ring_write_index
from tests.gpu.inputs import BLOCK, Call, Inputs, Maker, Outputs
from tests.kernels.helpers.ring import reserve

SLOTS, WRITTEN = 12, 17
"""More blocks were written than there are slots: the ring has wrapped around."""


def _columns(new: Maker) -> Columns:
    """Blocks of sessions 0 and 1 in turn; the newest stands before the cursor."""
    numbers = torch.zeros(SLOTS, dtype=torch.int64)
    for number in range(WRITTEN):
        numbers[number % SLOTS] = number + 1
    at = {int(number): slot for slot, number in enumerate(numbers)}
    after = torch.tensor([at.get(int(n) + 2, -1) for n in numbers])
    before = torch.tensor([at.get(int(n) - 2, -1) for n in numbers])
    return Columns(
        cursor=torch.tensor([WRITTEN], device=new.device),
        session=(numbers % 2).to(new.device),
        created=numbers.to(new.device),
        successor=after.to(new.device),
        predecessor=before.to(new.device),
        last_access=new.integers(9, SLOTS),
        access_count=new.integers(9, SLOTS),
        relevance=new.floats(SLOTS),
        token_ids=new.integers(99, SLOTS, BLOCK),
        positions=new.integers(99, SLOTS, BLOCK),
    )


def _link(blocks: int) -> Call:
    """Two rows of text, their second block is left out."""
    tokens = blocks * BLOCK - 5
    count = 2 * blocks - 1

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        columns, sessions = _columns(new), new.integers(3, count)
        number = new.range(2 * blocks)
        return {
            "columns": columns,
            "reserved": reserve(columns, sessions),
            "sessions": sessions,
            "token_ids": new.integers(99, 2, tokens),
            "positions": new.integers(99, 2, tokens),
            "relevance": new.floats(2, blocks),
            "pick": number[number != 1],
        }

    def run(given: Inputs, columns: Columns) -> Outputs:
        for column, value in zip(columns, given["columns"], strict=True):
            column.copy_(value)  # what is changed in place starts the same each time
        ring_link(**{**given, "columns": columns})
        return columns

    return Call(
        f"ring_link/{count}", "ring_link", "cmr.write", make, run,
        lambda given: Columns(*(torch.empty_like(column) for column in given["columns"])),
    )  # fmt: skip


def _heads(heads: int, width: int, rotary: int) -> Call:
    """Keys that were rotated, and values, of two rows; four of six blocks are written."""
    tokens = 3 * BLOCK - 5

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        angles = new.floats(2, tokens, rotary // 2).repeat(1, 1, 2)
        return {
            "key_store": new.normal(SLOTS, heads, BLOCK, width),
            "value_store": new.normal(SLOTS, heads, BLOCK, width),
            "slots": new.distinct(SLOTS, 4),
            "pick": new.distinct(6, 4),
            "keys": new.normal(2, heads, tokens, width),
            "values": new.normal(2, heads, tokens, width),
            "cos": angles.cos(),
            "sin": angles.sin(),
        }

    def run(given: Inputs, stores: Outputs) -> Outputs:
        stores[0].copy_(given["key_store"])
        stores[1].copy_(given["value_store"])
        ring_write_heads(**{**given, "key_store": stores[0], "value_store": stores[1]})
        return stores

    return Call(
        f"ring_write_heads/{heads}x{width} of {rotary}", "ring_write_heads", "cmr.write", make,
        run, lambda given: tuple(torch.empty_like(given[f"{x}_store"]) for x in ("key", "value")),
    )  # fmt: skip


def _index(hidden: int, codes: torch.dtype | None = None) -> Call:
    tokens = 3 * BLOCK - 5

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        index = new.normal(SLOTS, BLOCK, hidden).to(codes or dtype)
        return {
            "index": index,
            "scale": new.floats(SLOTS, BLOCK).abs() if codes else None,
            "slots": new.distinct(SLOTS, 4),
            "pick": new.distinct(6, 4),
            "states": new.normal(2, tokens, hidden),
        }

    def run(given: Inputs, out: Outputs) -> Outputs:
        index, *scale = out
        index.copy_(given["index"])
        if scale:
            scale[0].copy_(given["scale"])
        ring_write_index(**{**given, "index": index, "scale": scale[0] if scale else None})
        return (_readable(index), *scale)

    def allocate(given: Inputs) -> Outputs:
        kept = (given["index"], given["scale"])
        return tuple(torch.empty_like(x) for x in kept if x is not None)

    return Call(
        f"ring_write_index/{hidden}{f' {str(codes)[6:]}' if codes else ''}", "ring_write_index",
        "cmr.write", make, run, allocate,
    )  # fmt: skip


def _readable(index: torch.Tensor) -> torch.Tensor:
    """fp8 codes by their bits, which are compared as they are."""
    return index.view(torch.uint8) if index.dtype == torch.float8_e4m3fn else index


WRITES = [
    _link(3),
    _heads(3, 64, 64),
    _heads(2, 100, 50),
    _index(100),
    _index(96, torch.int8),
    _index(96, torch.float8_e4m3fn),
]
