"""Who is expected next, and what is brought up for them."""

from __future__ import annotations

import pytest
import torch

import cmr
from cmr import MemoryPrefetcher, UnknownSessionError
from tests.integration.tiny import text

BLOCKS = 4


@pytest.fixture
def memory(llama):
    """Four sessions of four blocks each share a first tier of four blocks, and one below."""
    tiers = {"budget": BLOCKS * 16, "working_budget": 5 * BLOCKS * 16, "block_size": 16}
    with cmr.attach(llama, window=64, threshold=0.0, **tiers) as memory:
        for name in ("anna", "ben", "carl", "dora"):
            memory.read(text(1, BLOCKS * 16, seed=ord(name[0])), sessions=[name])
        yield memory


def recent(memory: cmr.Memory, name: str) -> int:
    return len(memory.inspect(name, tier="recent"))


def test_an_expected_session_is_lifted_and_says_the_same(memory, llama) -> None:
    question = text(1, 8, seed=9)
    with memory.session("anna"):
        before = llama(question).logits
    memory.forget("carl")
    memory.forget("dora")
    here, tokens = recent(memory, "anna"), memory.tokens
    risen = MemoryPrefetcher(memory).prefetch("anna")
    assert 0 < risen == recent(memory, "anna") - here
    assert memory.tokens == tokens
    with memory.session("anna"):
        torch.testing.assert_close(llama(question).logits, before, rtol=1e-4, atol=1e-5)


def test_lifting_leaves_others_their_share(memory) -> None:
    for _ in range(4):
        memory.lift("anna")
    assert [recent(memory, name) for name in ("anna", "ben", "carl", "dora")] == [1, 1, 1, 1]
    assert memory.lift("anna") == 0


def test_what_was_used_longest_ago_sinks_for_what_is_lifted(memory, llama) -> None:
    memory.forget("carl")
    memory.forget("dora")
    memory.lift("ben")
    memory.lift("ben")
    assert recent(memory, "anna") < 2 < recent(memory, "ben")  # above its share of two
    assert memory.lift("anna") > 0
    assert (recent(memory, "anna"), recent(memory, "ben")) == (2, 2)


def test_sessions_that_follow_each_other_are_predicted(memory) -> None:
    prefetcher = MemoryPrefetcher(memory, ahead=1)
    for name in ("anna", "ben", "anna", "ben", "anna"):
        prefetcher.note([name])
    assert prefetcher.predict() == ["ben"]
    prefetcher.prefetch()
    prefetcher.note(["ben"])
    assert prefetcher.predict() == ["anna"]
    assert prefetcher.stats()["expected"] == 1 / 6


def test_sessions_that_ended_are_not_expected(memory) -> None:
    prefetcher = MemoryPrefetcher(memory)
    for name in ("anna", "ben", "anna"):
        prefetcher.note([name])
    memory.forget("ben")
    assert "ben" not in prefetcher.predict()
    assert prefetcher.prefetch() == 0 or "ben" not in memory.sessions


def test_an_unknown_session_moves_nothing(memory) -> None:
    memory.forget("dora")
    here = recent(memory, "anna")
    with pytest.raises(UnknownSessionError):
        memory.lift("anna", "nobody")
    assert recent(memory, "anna") == here


def test_a_session_that_ends_meanwhile_is_not_lifted(memory, monkeypatch) -> None:
    """Between what is predicted and what is lifted another thread ends the likeliest one."""
    prefetcher = MemoryPrefetcher(memory, ahead=2)
    for name in ("anna", "ben", "anna", "carl", "anna"):
        prefetcher.note([name])
    lift, asked = memory.lift, []

    def ending(*names: str, **given) -> int:
        if not asked:
            memory.forget("carl")
        asked.append(names)
        return lift(*names, **given)

    monkeypatch.setattr(memory, "lift", ending)
    prefetcher.prefetch()
    assert asked == [("ben", "carl"), ("ben",)]
    with pytest.raises(UnknownSessionError):
        prefetcher.prefetch("carl")


@pytest.fixture
def far(llama):
    """Two sessions of sixteen blocks, nearly all of them as token ids alone."""
    tiers = {"budget": 16, "long_term_budget": 1024, "block_size": 16, "blocks": 1}
    with cmr.attach(llama, window=64, threshold=0.0, **tiers) as memory:
        for name in ("anna", "ben"):
            memory.read(text(1, 256, seed=ord(name[0])), sessions=[name])
        yield memory


def test_what_was_run_ahead_is_read_at_once_and_says_the_same(far, llama) -> None:
    question, again = text(1, 8, seed=9), far._core.recomputed
    with far.session("anna"):
        before = llama(question).logits
    again.forget()
    blocks = len(far.inspect("anna"))
    assert 0 < far.prepare("anna") <= blocks
    runs, asked, ready = again.runs, again.asked, again.ready
    with far.session("anna"):
        torch.testing.assert_close(llama(question).logits, before, rtol=1e-4, atol=1e-5)
    assert again.runs == runs, "nothing is run through the model by the request"
    assert again.asked > asked and again.ready - ready == again.asked - asked
    assert far.prepare("anna") == 0, "all of it is there"


def test_those_next_to_what_was_last_recalled_come_first(far, llama) -> None:
    again = far._core.recomputed
    with far.session("anna"):
        llama(text(1, 8, seed=9))
    (last,) = far.recalled[0]
    again.forget()
    assert far.prepare("anna", passages=3) == 3
    where = {block.id: block.start for block in far.inspect("anna")}
    starts = [where[number] for name in again._kept for number in name[:1] if number in where]
    assert all(abs(start - last.start) <= 6 * 16 for start in starts)


def test_it_ends_where_a_newer_request_comes(far) -> None:
    prefetcher = MemoryPrefetcher(far)
    for name in ("anna", "ben", "anna"):
        prefetcher.note([name])
    pieces = []

    def between() -> None:
        pieces.append(1)
        if len(pieces) == 2:
            prefetcher.note(["ben"])

    prefetcher.prefetch(between=between)
    assert len(pieces) <= 3 and prefetcher.stats()["expected"] > 0
    assert far._core.recomputed.runs <= 2


def test_what_was_run_ahead_is_forgotten_with_the_session(far) -> None:
    far.prepare("anna")
    assert far._core.recomputed._kept
    far.forget("anna")
    assert not far._core.recomputed._kept
    with pytest.raises(UnknownSessionError):
        far.prepare("anna")
    with pytest.raises(cmr.ConfigError, match="passages"):
        far.prepare("ben", passages=0)


def test_nothing_is_run_where_all_tiers_keep_states(memory) -> None:
    assert memory.prepare("anna", "ben") == 0


def test_what_is_forgotten_meanwhile_is_not_run(far) -> None:
    pieces = []

    def between() -> None:
        pieces.append(1)
        if len(pieces) == 3:
            far.forget("ben")

    assert far.prepare("ben", between=between) == 2
    assert len(pieces) > 3 and not far._core.recomputed._kept
