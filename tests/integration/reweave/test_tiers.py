"""Tiers of an attached memory: what lies lower is found and read as if it had stayed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.config import EVICTION_STRATEGIES
from cmr.config.topics import LOOK_AT_RELEVANCE
from tests.integration.tiny import text
from tests.kernels.helpers.compare import assert_close

BLOCKS = 12
"""Blocks of the text; every memory here has room for all of them."""
SETTINGS: dict[str, Any] = {
    "window": 64, "threshold": 0.0, "memory_weight": 0.5, "calibration": "none",
}  # fmt: skip
TIERS: dict[str, dict[str, Any]] = {
    "recent": {"budget": 32 * BLOCKS},
    "working": {"budget": 64, "working_budget": 32 * BLOCKS},
    "long_term": {"budget": 64, "long_term_budget": 32 * BLOCKS},
    "long_term_kv": {"budget": 64, "long_term_budget": 32 * BLOCKS, "long_term_store": "kv"},
    "all": {"budget": 64, "working_budget": 64, "long_term_budget": 32 * BLOCKS},
}


def ask(model: nn.Module, **settings: Any) -> tuple[torch.Tensor, list[Any], cmr.Memory]:
    """Logits of a question about the text's beginning, and what was recalled for it."""
    ids = text(32 * BLOCKS)
    with cmr.attach(model, **{**SETTINGS, **settings}) as memory:
        memory.read(ids)
        assert memory.tokens == len(ids)
        logits = model(ids[None, 40:70]).logits
        return logits, memory.recalled[0], memory


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
@pytest.mark.parametrize("tier", ["working", "long_term_kv"])
def test_what_is_kept_as_it_is_reads_as_if_it_had_stayed(
    tier: str, store: str, model: nn.Module
) -> None:
    want, passages, _ = ask(model, **TIERS["recent"], store=store)
    have, again, memory = ask(model, **TIERS[tier], store=store)
    assert (passages[0].start, passages[0].end) == (again[0].start, again[0].end)
    if tier == "working":  # in the long term the index is rounded to 8 bits
        assert torch.equal(have, want)
    assert_close("logits", have, want, 5e-3, 5e-3)
    assert memory.stats()["tiers"]["recent"]["blocks"] == 2


def test_what_is_run_through_the_model_again_reads_as_with_tokens_only(model: nn.Module) -> None:
    # One passage: whether a second one is near enough may differ by the rounding of 8-bit codes.
    want, _, _ = ask(model, **TIERS["recent"], store="tokens", blocks=1)
    plain, _, _ = ask(model, **TIERS["recent"], memory_weight=0.0)
    for tier in ("long_term", "all"):
        have, passages, memory = ask(model, **TIERS[tier], store="kv", blocks=1)
        assert passages[0].start <= 40 and passages[0].end >= 70
        assert_close(tier, have, want, 2e-2, 2e-2)
        assert memory._core.recomputed.runs == 1
    assert (want - plain).abs().max() > 0.1, "memory that changes nothing shows nothing"


def test_what_is_far_away_is_gathered_ahead(llama: nn.Module) -> None:
    """In a thread that ends with the memory; what is raised there is raised where it is read."""
    _, _, memory = ask(llama, **TIERS["long_term_kv"])
    layers = memory.stats()["target_layers"]
    assert memory._core.prefetcher.gathered == len(layers)
    assert not [t for t in threading.enumerate() if t.name.startswith("cmr-prefetch")]
    assert ask(llama, **TIERS["working"])[2]._core.prefetcher.gathered == 0
    with cmr.attach(llama, **SETTINGS, **TIERS["long_term_kv"], strict=True) as memory:
        memory.read(text(32 * BLOCKS))

        def broken(*_: object) -> None:
            raise OSError("the disk is gone")

        memory._core.ring.gather_anywhere = broken
        with pytest.raises(OSError, match="the disk is gone"):
            llama(text(32 * BLOCKS)[None, 40:70])


def test_a_long_term_token_is_cheap(llama: nn.Module) -> None:
    _, _, memory = ask(llama, **TIERS["all"])
    tiers = memory.stats()["tiers"]
    assert [tiers[name]["blocks"] for name in tiers] == [2, 2, BLOCKS - 4]
    assert tiers["long_term"]["bytes_per_token"] < tiers["working"]["bytes_per_token"] / 8
    assert memory.nbytes == sum(tier["bytes"] for tier in tiers.values())


def test_a_passage_across_tiers_is_read_whole(llama: nn.Module) -> None:
    """The last block of one tier and the first of the next, in one run."""
    ids = text(32 * 6)
    with cmr.attach(
        llama, **SETTINGS, budget=64, working_budget=64, long_term_budget=640
    ) as memory:
        memory.read(ids)
        llama(ids[None, 100:150])
        found = memory.recalled[0][0]
        assert torch.equal(torch.tensor(found.token_ids), ids[found.start : found.end])
        tiers = {b.tier for b in memory.inspect(start=found.start, end=found.end)}
    assert len(tiers) > 1 and found.start < 128 < found.end


def test_a_search_that_recalls_the_same_does_not_run_it_again(llama: nn.Module) -> None:
    ids = text(32 * BLOCKS)
    with cmr.attach(llama, **SETTINGS, **TIERS["long_term"]) as memory:
        memory.read(ids)
        for _ in range(3):
            llama(ids[None, 40:70])
        assert memory._core.recomputed.runs == 1


def test_tiers_under_generate_with_beams_and_padding(llama: nn.Module) -> None:
    ids = text(2, 32 * BLOCKS)
    mask = torch.ones(2, 30, dtype=torch.int64)
    mask[1, :7] = 0
    outs = []
    for tier in ("recent", "working"):
        with cmr.attach(llama, **SETTINGS, **{**TIERS[tier], "budget": 32 * 30}) as memory:
            memory.read(ids)
            if tier == "working":
                slots = memory._core.ring.ledger.slots_of(None)
                target = memory._core.ring.take(1, BLOCKS)
                memory._core.ring.move(slots[:BLOCKS], target)
            outs.append(
                llama.generate(
                    ids[:, 40:70],
                    attention_mask=mask,
                    num_beams=2,
                    max_new_tokens=40,
                    do_sample=False,
                )
            )
    assert torch.equal(*outs)


def test_what_is_used_rises_and_what_is_not_sinks(llama: nn.Module) -> None:
    ids = text(32 * BLOCKS)
    with cmr.attach(llama, **SETTINGS, **TIERS["all"], eviction_strategy="lru") as memory:
        memory.read(ids)
        llama(ids[None, 40:70])
        used = {b.id for b in memory.inspect() if b.access_count}
        assert {b.tier for b in memory.inspect() if b.id in used} == {"long_term"}
        before, _ = memory.recalled[0][0], memory.consolidate()
        tiers = [b.tier for b in memory.inspect() if b.id in used]
        assert "long_term" in tiers and "working" in tiers, "half of a tier rises at once"
        assert memory.tokens == len(ids)
        llama(ids[None, 40:70])
        after = memory.recalled[0][0]
        assert (after.start, after.end) == (before.start, before.end)
        assert memory.consolidate().risen > 0


def test_what_stands_twice_is_merged(llama: nn.Module) -> None:
    ids = text(128)
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(torch.cat([ids, text(64, seed=4), ids]))
        memory.read(ids, sessions=["other"])
        report = memory.consolidate()
        assert report.merged in (3, 4) and memory.consolidate().merged == 0
        assert len(memory.inspect("0")) == 10 - report.merged
        assert len(memory.inspect("other")) == 4, "what another session has stored is no copy"
        assert memory.inspect("0")[-1].end == 320


@pytest.mark.parametrize("strategy", EVICTION_STRATEGIES)
def test_the_strategy_decides_what_leaves(strategy: str, tiny: Callable[[str], nn.Module]) -> None:
    model, ids = tiny("llama"), text(32 * BLOCKS)
    with cmr.attach(model, **SETTINGS, budget=32 * 8, eviction_strategy=strategy) as memory:
        memory.read(ids[: 32 * 8])
        model(ids[None, :30])
        used = {b.id for b in memory.inspect() if b.access_count}
        assert 1 in used and len(used) < 8
        relevance = {b.id: b.relevance for b in memory.inspect()}
        memory.read(ids[32 * 8 :])
        kept = {b.id for b in memory.inspect()}
        lost = set(range(1, 9)) - kept
    assert len(kept) == 8
    if strategy == "oldest":
        assert lost == {1, 2, 3, 4}
    elif strategy == "lru":
        assert not lost & used
    else:
        assert strategy in LOOK_AT_RELEVANCE, "a new strategy: say here what it loses"
        assert len(set(relevance.values())) > 4, "blocks were scored"
        mean = sum(relevance[n] for n in lost) / max(1, len(lost))
        assert not lost or mean < sum(relevance.values()) / 8


def test_budgets_in_bytes(llama: nn.Module) -> None:
    with cmr.attach(
        llama, budget="1 MiB", working_budget="2MB", long_term_budget="64KiB"
    ) as memory:
        tiers = memory.stats()["tiers"]
        for name, most in (("recent", 2**20), ("working", 2 * 10**6), ("long_term", 2**16)):
            assert 0.9 * most < tiers[name]["bytes"] <= most
    with cmr.attach(llama, max_total_entries=1000) as memory:
        layers = len(memory.stats()["target_layers"])
        assert memory.stats()["capacity_tokens"] == 1000 // layers // 32 * 32
