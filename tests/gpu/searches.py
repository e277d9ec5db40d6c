"""The steps of a search, with inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cmr.kernels.cosine_topk import cosine_topk
from cmr.kernels.cover import Enough, cover
from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.reference.select import Rule, SearchColumns
from cmr.kernels.search.lines import within_lines
from cmr.kernels.search.parts import Numbers, Windows, part_scores
from cmr.kernels.search.query import Places, Weighing, write_query
from cmr.kernels.search.recalled import Sure, Used, recalled, without_unread
from cmr.kernels.select import best_passages, maxsim_select, new_scratch, new_selection
from cmr.kernels.standardise import standardise
from cmr.kernels.words import Words, words
from tests.gpu.inputs import BLOCK, Call, Inputs, Maker


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


def _standardise(tokens: int, blocks: int, large: bool = False) -> Call:
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
        lambda given, _: (standardise(**given),), large=large,
    )  # fmt: skip


def _cover(tokens: int, k: int, most: int, large: bool = False, parts: int = 0) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(300)
        after = torch.where(slots + 1 < 300, slots + 1, -1)
        scores = new.floats(2, k).sort(-1, descending=True).values
        told = {
            "values": new.floats(2, tokens, 300 if parts else k).tanh(),
            "shares": new.floats(*(2, parts, tokens) if parts else (2, tokens)).softmax(-1),
            **({"winner": new.integers(parts, 2, 300)} if parts else {}),
        }
        return {
            **told,
            "scores": scores,
            "starts": (new.range(k) * 7).expand(2, -1).contiguous(),
            "fits": scores,
            "columns": SearchColumns(slots, slots[:, None], after, slots - 1, slots + 1),
            "enough": Enough(0.75, 0.1, 2, 1),
            "most": most,
        }

    return Call(
        f"cover/{tokens}x{k} {most}" + f" p{parts}" * bool(parts), "cover", "cmr.retrieve", make,
        lambda given, _: tuple(cover(**given)), large=large,
    )  # fmt: skip


def _best_passages(blocks: int, k: int, large: bool = False) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(blocks)
        after = torch.where(slots + 1 < blocks, slots + 1, -1)
        return {
            "line": new.floats(2, blocks),
            "base": new.floats(2, blocks),
            "seen": new.integers(5, 2, blocks) > 0,
            "certainty": new.floats(2).abs() + 1.0,
            "columns": SearchColumns(slots, slots[:, None], after, slots - 1, slots + 1),
            "k": k,
            "threshold": 1.0,
        }

    return Call(
        f"best_passages/{blocks} k{k}", "best_passages", "cmr.retrieve", make,
        lambda given, _: tuple(best_passages(**given)), large=large,
    )  # fmt: skip


def _words(tokens: int, blocks: int, parts: int, large: bool = False) -> Call:
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
        lambda given, _: tuple(words(**given)), large=large,
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
        return new_selection(like, k, run), new_scratch(like, 2, tokens, blocks)

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


def _part_scores(tokens: int, blocks: int, parts: int, large: bool = False) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(blocks)[:, None]
        ahead, back = slots + 2 * new.range(3), slots - new.range(5)
        links = torch.where(ahead < blocks, ahead, blocks), torch.where(back >= 0, back, blocks)
        some = [new.integers(2, blocks) > 0 for _ in range(2)]
        return {
            "z": new.floats(2, tokens, blocks),
            "seen": new.integers(4, 2, blocks) > 0,
            "of": new.integers(parts + 1, 2, tokens) - 1,
            "marked": new.integers(2, 2, parts) > 0,
            "words": Words(new.floats(2, tokens).abs(), new.floats(2, parts, blocks).abs()),
            "windows": Windows(*links, *some),
            "numbers": Numbers(1, 8.0, 0.2, 0.4, 0.7, 1.4, -0.75, 0.8, 0.45, 12, 1.4),
        }

    def call(given: Inputs, _: Any) -> tuple[torch.Tensor, ...]:
        found = part_scores(**given)  # of parts that are level either may win
        return found.line, found.shares, found.certainty

    return Call(
        f"part_scores/{tokens}x{blocks} in {parts}", "part_scores", "cmr.retrieve", make, call,
        large=large,
    )  # fmt: skip


def _within_lines(k: int, neighbours: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        slots = new.range(300)
        after = torch.where(slots + 1 < 300, slots + 1, -1)
        places = slots[:, None] * BLOCK + new.range(BLOCK)
        return {
            "starts": torch.stack([new.distinct(300, k) for _ in range(2)]),
            "columns": SearchColumns(slots, places, after, slots - 1, slots + 1),
            "token_ids": new.integers(50, 300, BLOCK),
            "breaks": new.range(41) % 20 == 3,
            "passage": 2,
            "neighbours": neighbours,
        }

    return Call(
        f"within_lines/{k} n{neighbours}", "within_lines", "cmr.retrieve", make,
        lambda given, _: (within_lines(**given),),
    )  # fmt: skip


def _recalled(entries: int, hidden: int) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        table, index = (
            torch.stack([new.distinct(300, entries) for _ in range(2)]),
            new.normal(300, BLOCK, hidden),
        )
        table[1, -1], index[:, 0] = -1, 0
        return {
            "table": table,
            "within": new.integers(300 * BLOCK, 2, 3, 2).sort(-1).values,
            "positions": new.range(300 * BLOCK).view(300, BLOCK),
            "token_ids": new.integers(50, 300, BLOCK),
            "index": index,
            "used": Used(new.range(300), new.range(300), 150),
            "sure": Sure(new.floats(2), -0.5, 0.5, 3.0),
        }

    def call(given: Inputs, _: Any) -> tuple[torch.Tensor, ...]:
        counts, when, now = given["used"]
        used = Used(counts.clone(), when.clone(), now)  # they are counted on
        return (*recalled(**{**given, "used": used}), *used[:2])

    return Call(f"recalled/{entries}x{hidden}", "recalled", "cmr.retrieve", make, call)


def _without_unread(entries: int) -> Call:
    def make(device: str, _: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, torch.float32, seed)
        return {
            "positions": new.range(300 * BLOCK).view(300, BLOCK),
            "table": torch.stack([new.distinct(300, entries) for _ in range(2)]),
            "read": new.integers(3, 2, entries * BLOCK) > 0,
        }

    return Call(
        f"without_unread/{entries}", "without_unread", "cmr.retrieve", make,
        lambda given, _: (without_unread(**given),),
    )  # fmt: skip


def _write_query(rows: int, tokens: int, hidden: int, width: int = 0) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        new = Maker(device, dtype, seed)
        weighing = None
        if width:
            # Orthogonal directions: nothing is much larger than what comes of it.
            basis = torch.linalg.qr(new.floats(hidden, width).cpu()).Q.to(device)
            weighing = Weighing(new.floats(hidden) / hidden, basis)
        return {
            "states": new.normal(rows, tokens, hidden),
            "mask": new.integers(2, rows, tokens) > 0,
            "token_ids": new.integers(99, rows, tokens),
            "part": 2,
            "weighing": weighing,
        }

    def call(given: Inputs, out: Any) -> tuple[torch.Tensor, ...]:
        write_query(out, **given)
        return tuple(out)

    def allocate(given: Inputs) -> Any:
        ids = torch.zeros_like(given["token_ids"])
        return Places(torch.zeros_like(given["states"]), ids, ids.clone(), ids > 0)

    return Call(
        f"write_query/{rows}x{tokens}x{hidden}" + f" of {width}" * bool(width), "write_query",
        "cmr.retrieve", make, call if not width else lambda given, _: call(given, allocate(given)),
        None if width else allocate, decoding=not width,
    )  # fmt: skip


SEARCHES = [
    _write_query(2, 5, 100),
    _write_query(1, 16, 576, 300),
    _write_query(3, 16, 4096, 64),
    _block_maxima(1, 70, 100),
    _block_maxima(64, 33, 96),
    _block_maxima(64, 2048, 576, large=True),
    _block_maxima_of_codes(torch.int8, 17, 33, 96),
    _block_maxima_of_codes(torch.float8_e4m3fn, 17, 33, 96),
    _standardise(5, 301),
    _standardise(64, 3000),
    _standardise(128, 32768, large=True),
    _cover(5, 8, 3),
    _cover(100, 33, 9, parts=3),
    _cover(100, 33, 9),
    _cover(512, 33, 33, large=True),
    _best_passages(301, 2),
    _best_passages(2000, 33),
    _best_passages(1 << 20, 64, large=True),
    _words(7, 70, 3),
    _words(100, 301, 9),
    _words(128, 2048, 6, large=True),
    _part_scores(7, 70, 3),
    _part_scores(100, 1301, 9),
    _part_scores(128, 32768, 6, large=True),
    _within_lines(3, 1),
    _within_lines(64, 8),
    _recalled(12, 100),
    _recalled(200, 576),
    _without_unread(12),
    _without_unread(200),
    _maxsim_select(5, 301, 2),
    _maxsim_select(64, 300, 7),
    _cosine_topk(1, 1000, 100, 16),
    _cosine_topk(33, 300, 60, 64),
    _cosine_topk(32, 65536, 576, 16, large=True),
]
