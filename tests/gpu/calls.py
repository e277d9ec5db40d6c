"""Every operation with inputs for it: what the checks of this folder run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cmr.kernels.attention import attention_with_lse
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.attention_received import attention_received
from cmr.kernels.cosine_topk import cosine_topk
from cmr.kernels.cover import Enough, cover
from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.reference.select import Rule, SearchColumns
from cmr.kernels.reweave_paged import reweave_paged
from cmr.kernels.reweave_residual import reweave_residual_paged
from cmr.kernels.score import hybrid_blocks, state_scores, surprise
from cmr.kernels.select import best_passages, maxsim_select, new_scratch, new_selection
from cmr.kernels.standardise import standardise
from cmr.kernels.words import words
from tests.gpu.inputs import BLOCK, Call, Inputs, Maker, Outputs
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


def _hybrid_blocks(count: int, tokens: int, sample: int) -> Call:
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
        lambda given, _: hybrid_blocks(**given),
    )  # fmt: skip


# -- retrieve -------------------------------------------------------------------------------------


def _block_maxima(tokens: int, blocks: int, hidden: int, large: bool = False) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        positions = new.range(blocks * BLOCK).view(blocks, BLOCK).clone()
        positions[1, BLOCK // 2 :] = -1
        return {
            "query": new.unit(2, tokens, hidden),
            "index": new.unit(blocks, BLOCK, hidden),
            "token_mask": positions,
            "session": new.integers(2, blocks),
            "sessions": new.range(2),
        }

    return Call(
        f"block_maxima/{tokens}x{blocks}x{BLOCK}x{hidden}", "block_maxima", "cmr.retrieve", make,
        lambda given, out: (block_maxima(**given, out=out),),
        lambda given: given["query"].new_empty(2, tokens, blocks, dtype=torch.float32),
        decoding=True, large=large,
    )  # fmt: skip


def _block_maxima_of_codes(dtype: torch.dtype, tokens: int, blocks: int, hidden: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float16, seed)
        codes, scale = quantise_rows(new.unit(blocks, BLOCK, hidden), dtype)
        return {"query": new.unit(1, tokens, hidden), "index": codes, "scale": scale}

    return Call(
        f"block_maxima/{tokens}x{blocks}x{BLOCK}x{hidden} {str(dtype)[6:]}", "block_maxima",
        "cmr.retrieve", make, lambda given, out: (block_maxima(**given, out=out),),
        lambda given: given["query"].new_empty(1, tokens, blocks, dtype=torch.float32),
    )  # fmt: skip


def _standardise(tokens: int, blocks: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(blocks)
        return {
            "maxima": new.floats(2, tokens, blocks).tanh(),
            "visible": slots % 3 < torch.tensor([[1], [2]]).to(device),
            "successor": torch.where(slots + 1 < blocks, slots + 1, -1),
        }

    return Call(
        f"standardise/{tokens}x{blocks}", "standardise", "cmr.retrieve", make,
        lambda given, _: (standardise(**given),),
    )  # fmt: skip


def _cover(tokens: int, k: int, most: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(300)
        after = torch.where(slots + 1 < 300, slots + 1, -1)
        scores = new.floats(2, k).sort(-1, descending=True).values
        return {
            "values": new.floats(2, tokens, k).tanh(),
            "shares": new.floats(2, tokens).softmax(-1),
            "scores": scores,
            "starts": (new.range(k) * 7).expand(2, -1).contiguous(),
            "fits": scores,
            "columns": SearchColumns(slots, slots[:, None], after, slots - 1, slots + 1),
            "enough": Enough(0.75, 0.1, 2, 1),
            "most": most,
        }

    return Call(
        f"cover/{tokens}x{k} {most}", "cover", "cmr.retrieve", make,
        lambda given, _: tuple(cover(**given)),
    )  # fmt: skip


def _best_passages(blocks: int, k: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(blocks)
        after = torch.where(slots + 1 < blocks, slots + 1, -1)
        return {
            "line": new.floats(2, blocks),
            "base": new.floats(2, blocks),
            "columns": SearchColumns(slots, slots[:, None], after, slots - 1, slots + 1),
            "k": k,
        }

    return Call(
        f"best_passages/{blocks} k{k}", "best_passages", "cmr.retrieve", make,
        lambda given, _: tuple(best_passages(**given)),
    )  # fmt: skip


def _words(tokens: int, blocks: int, parts: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(blocks)
        return {
            "query": new.integers(45, 2, tokens),
            "of": new.integers(parts + 1, 2, tokens) - 1,
            "token_ids": new.integers(45, blocks, BLOCK),
            "positions": new.integers(9, blocks, BLOCK) - 1,
            "successor": torch.where(slots + 1 < blocks, slots + 1, -1),
            "seen": slots % 3 < torch.tensor([[1], [2]]).to(device),
            "classes": new.range(41) % 9,
            "kinds": 9,
            "parts": parts,
        }

    return Call(
        f"words/{tokens}x{blocks} in {parts}", "words", "cmr.retrieve", make,
        lambda given, _: tuple(words(**given)),
    )  # fmt: skip


RULE = Rule(
    peak_power=2, clamp=8.0, threshold=0.0, null_base=0.5, null_slope=0.2, few_blocks=4,
    few_certainty=1.0, passage=2, neighbours=1,
)  # fmt: skip


def _maxsim_select(tokens: int, blocks: int, k: int) -> Call:
    run = RULE.passage + 2 * RULE.neighbours

    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        slots = new.range(blocks)
        columns = SearchColumns(
            session=slots % 2,
            positions=(slots // 2 * BLOCK)[:, None] + new.range(BLOCK),
            successor=torch.where(slots + 2 < blocks, slots + 2, -1),
            predecessor=torch.where(slots >= 2, slots - 2, -1),
            created=slots + 1,
        )
        return {
            "maxima": new.floats(2, tokens, blocks).tanh(),
            "query_mask": new.range(tokens) >= torch.tensor([[0], [tokens // 2]]).to(device),
            "columns": columns,
            "sessions": new.range(2),
            "before": None,
            "rule": RULE,
            "k": k,
        }

    def allocate(given: Inputs) -> Any:
        like = given["maxima"]
        return new_selection(like, 2, k, run), new_scratch(like, 2, tokens, blocks)

    return Call(
        f"maxsim_select/{tokens}x{blocks} k{k}", "maxsim_select", "cmr.retrieve", make,
        lambda given, out: maxsim_select(**given, out=out[0], scratch=out[1]), allocate,
        decoding=True,
    )  # fmt: skip


def _cosine_topk(queries: int, entries: int, hidden: int, k: int, large: bool = False) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        stored = new.normal(entries, hidden)
        return {
            "query": new.normal(queries, hidden),
            "entries": stored,
            "inverse_norm": 1.0 / stored.float().norm(dim=-1),
            "visible": new.integers(4, queries, entries) > 0,
            "k": k,
        }

    return Call(
        f"cosine_topk/{queries}x{entries}x{hidden} k{k}", "cosine_topk", "cmr.retrieve", make,
        lambda given, out: cosine_topk(**given, out=out), _best(queries, k),
        large=large, ranked=True,
    )  # fmt: skip


def _best(queries: int, k: int) -> Callable[[Inputs], Any]:
    def allocate(given: Inputs) -> Any:
        scores = given["query"].new_empty(queries, k, dtype=torch.float32)
        return scores, torch.empty_like(scores, dtype=torch.int64)

    return allocate


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
    _block_maxima(1, 70, 100),
    _block_maxima(64, 33, 96),
    _block_maxima(64, 2048, 576, large=True),
    _block_maxima_of_codes(torch.int8, 17, 33, 96),
    _block_maxima_of_codes(torch.float8_e4m3fn, 17, 33, 96),
    _standardise(5, 301),
    _standardise(64, 3000),
    _cover(5, 8, 3),
    _cover(100, 33, 9),
    _best_passages(301, 2),
    _best_passages(2000, 33),
    _words(7, 70, 3),
    _words(100, 301, 9),
    _maxsim_select(5, 301, 2),
    _maxsim_select(64, 300, 7),
    _cosine_topk(1, 1000, 100, 16),
    _cosine_topk(33, 300, 60, 64),
    _cosine_topk(32, 65536, 576, 16, large=True),
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
