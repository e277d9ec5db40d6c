"""Every operation with inputs for it: what the checks of this folder run."""

from __future__ import annotations

from typing import Any

import torch

from cmr.kernels.attention import attention_with_lse
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.attention_received import attention_received
from cmr.kernels.reweave_paged import reweave_paged
from cmr.kernels.reweave_residual import reweave_residual_paged
from cmr.kernels.score import hybrid_blocks, state_scores, surprise
from tests.gpu.inputs import BLOCK, Call, Inputs, Maker, Outputs
from tests.gpu.searches import SEARCHES
from tests.gpu.writes import WRITES

# -- score ----------------------------------------------------------------------------------------


def _state_scores(tokens: int, hidden: int, large: bool = False) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        return {"states": new.normal(2, tokens, hidden), "lengths": new.integers(tokens + 1, 2)}

    return Call(
        f"state_scores/{tokens}x{hidden}", "state_scores", "cmr.score", make,
        lambda given, _: state_scores(given["states"], BLOCK, given["lengths"]), large=large,
    )  # fmt: skip


def _attention_received(heads: int, groups: int, tokens: int, width: int) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        return {
            "query": new.normal(2, heads, tokens, width),
            "key": new.normal(2, groups, tokens, width),
            "key_mask": new.range(tokens) < torch.tensor([[tokens], [tokens // 2]]).to(device),
        }

    return Call(
        f"attention_received/{heads}:{groups}x{tokens}x{width}", "attention_received", "cmr.score",
        make, lambda given, _: (attention_received(**given),),
    )  # fmt: skip


def _surprise(tokens: int, vocabulary: int) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        return {
            "logits": new.normal(2, tokens, vocabulary),
            "token_ids": new.integers(vocabulary, 2, tokens),
            "previous": new.normal(2, vocabulary),
        }

    return Call(
        f"surprise/{tokens}x{vocabulary}", "surprise", "cmr.score", make,
        lambda given, _: (surprise(**given),),
    )  # fmt: skip


def _hybrid_blocks(count: int, tokens: int, sample: int, large: bool = False) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        return {
            "scores": new.floats(count, 2, tokens),
            "references": new.floats(count, sample).sort(-1).values,
            "weights": new.floats(count).abs(),
            "block_size": BLOCK,
        }

    return Call(
        f"hybrid_blocks/{count}x{tokens}", "hybrid_blocks", "cmr.score", make,
        lambda given, _: hybrid_blocks(**given), large=large,
    )  # fmt: skip


# -- reweave --------------------------------------------------------------------------------------


def _attention(heads: int, groups: int, tokens: int, width: int, large: bool = False) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        key, value = (new.normal(2, groups, tokens, width) for _ in range(2))
        query = new.normal(2, heads, tokens, width)
        return {"query": query, "key": key, "value": value, "is_causal": True}

    def allocate(given: Inputs) -> Any:
        query = given["query"]
        out = torch.empty_like(query)
        return {"out": out, "lse": query.new_empty(query.shape[:3], dtype=torch.float32)}

    return Call(
        f"attention_with_lse/{heads}:{groups}x{tokens}x{width}", "attention_with_lse",
        "cmr.reweave", make, lambda given, out: attention_with_lse(**given, **out), allocate,
        large=large,
    )  # fmt: skip


def _partials(heads: int, groups: int, seen: int, width: int, parts: int) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        key, value = (new.normal(2, groups, seen, width) for _ in range(2))
        return {
            "query": new.normal(2, heads, 1, width),
            "key": key,
            "value": value,
            "mask": (new.range(seen) >= torch.tensor([[0], [5]]).to(device))[:, None, None],
        }

    def allocate(given: Inputs) -> Any:
        new = given["query"].new_empty
        out = new(parts, 2, heads, 1, width, dtype=torch.float32)
        return {"out": out, "lse": new(parts, 2, heads, 1, dtype=torch.float32)}

    return Call(
        f"attention_partials/{heads}:{groups}x{seen}x{width} in {parts}", "attention_partials",
        "cmr.reweave", make, lambda given, out: attention_partials(**given, **out), allocate,
        decoding=True,
    )  # fmt: skip


def _table(new: Maker, slots: int, entries: int) -> Inputs:
    """Two rows that read `entries` blocks each; one slot was overwritten, one entry is empty."""
    table = torch.stack([new.distinct(slots, entries) for _ in range(2)])
    created = new.range(1, slots + 1)
    stamps = created[table]
    stamps[0, 0] += 1
    table[1, -1] = -1
    positions = new.range(slots * BLOCK).view(slots, BLOCK).clone()
    positions[:, -1] = -1
    return {"table": table, "stamps": stamps, "created": created, "positions": positions}


def _reweave(heads: int, groups: int, tokens: int, width: int, parts: int) -> Call:
    slots, entries = 12, 4

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        angles = new.floats(2, tokens, width // 2).repeat(1, 1, 2)
        local = new.floats(parts, 2, heads, tokens, width)
        return {
            "query": new.normal(2, heads, tokens, width),
            "key_store": new.normal(slots, groups, BLOCK, width),
            "value_store": new.normal(slots, groups, BLOCK, width),
            **_table(new, slots, entries),
            "bias": new.floats(2),
            "local_out": local if parts > 1 else local[0].to(dtype),
            "local_lse": new.floats(parts, 2, heads, tokens)[slice(None) if parts > 1 else 0],
            "turn": (angles.cos(), angles.sin()),
        }

    def allocate(given: Inputs) -> Any:
        query = given["query"]
        gate = query.new_empty(query.shape[:3], dtype=torch.float32)
        return {"out": torch.empty_like(query), "gate": gate}

    return Call(
        f"reweave_paged/{heads}:{groups}x{tokens}x{width} of {parts}", "reweave_paged",
        "cmr.reweave", make, lambda given, out: reweave_paged(**given, **out), allocate,
        decoding=tokens == 1,
    )  # fmt: skip


def _residual(tokens: int, hidden: int) -> Call:
    slots, entries = 12, 4

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        return {
            "states": new.normal(2, tokens, hidden),
            "store": new.normal(slots, BLOCK, hidden),
            **_table(new, slots, entries),
            "weight": new.floats(2).sigmoid(),
        }

    def run(given: Inputs, states: torch.Tensor) -> Outputs:
        states.copy_(given["states"])  # what is changed in place starts the same each time
        return (reweave_residual_paged(**{**given, "states": states}),)

    return Call(
        f"reweave_residual_paged/{tokens}x{hidden}", "reweave_residual_paged", "cmr.reweave", make,
        run, lambda given: torch.empty_like(given["states"]), decoding=tokens == 1,
    )  # fmt: skip


CALLS = [
    _state_scores(70, 100),
    _state_scores(33, 577),
    _state_scores(4096, 4096, large=True),
    _attention_received(6, 2, 70, 80),
    _surprise(9, 1003),
    _hybrid_blocks(3, 70, 50),
    _hybrid_blocks(4, 4096, 1024, large=True),
    *SEARCHES,
    _attention(6, 2, 70, 64),
    _attention(4, 4, 33, 100),
    _attention(32, 8, 512, 128, large=True),
    _partials(9, 3, 70, 64, 4),
    _partials(8, 2, 516, 128, 4),
    _reweave(9, 3, 1, 64, 4),
    _reweave(8, 2, 1, 128, 1),
    _reweave(4, 2, 33, 80, 1),
    _residual(1, 576),
    _residual(33, 100),
    *WRITES,
]
