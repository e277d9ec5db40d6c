"""Whose memory is read and written, what is kept of it, and what it looks like from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import cmr
from tests.integration.canaries import NAMES, canary, is_of
from tests.integration.tiny import greedy, text

SETTINGS: dict[str, Any] = {"window": 64, "threshold": 0.0, "memory_weight": 0.8}


def test_rows_are_sessions_of_their_number(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        assert memory.sessions == []
        memory.read(text(3, 40))
        assert memory.sessions == ["0", "1", "2"]
        memory.read(text(2, 50))
        assert memory.sessions == ["0", "1", "2"]
        assert [sum(len(e.token_ids) for e in memory.entries(n)) for n in "012"] == [90, 90, 40]
        llama(text(3, 20))
        assert [{p.session for p in row} for row in memory.recalled] == [{"0"}, {"1"}, {"2"}]


def test_a_text_of_one_dimension_is_one_row(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(40).to(torch.int32))
        memory.read(text(40).to(torch.uint8), torch.ones(40))
        assert (memory.sessions, memory.tokens) == (["0"], 80)


def test_positions_go_on_from_text_to_text(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        for tokens in (40, 7, 70):
            memory.read(text(tokens, seed=tokens), sessions=["anna"])
        entries = memory.entries("anna")
        assert [e.position_idx for e in entries] == [0, 32, 40, 47, 79, 111]
        whole = torch.cat([text(n, seed=n) for n in (40, 7, 70)]).tolist()
        assert [token for e in entries for token in e.token_ids] == whole


def test_sessions_nest_and_end(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        with memory.session("anna", create=True):
            memory.read(canary("anna", 50))
            with memory.session("ben", create=True):
                memory.read(canary("ben", 50))
            memory.read(canary("anna", 50, seed=1))
        memory.read(canary("carl", 50))
        assert memory.sessions == ["anna", "ben", "0"]
        for session, name in (("anna", "anna"), ("ben", "ben"), ("0", "carl")):
            assert is_of(name, [t for e in memory.entries(session) for t in e.token_ids])
        with pytest.raises(RuntimeError), memory.session("ben"):
            raise RuntimeError
        memory.read(canary("carl", 10))
        assert memory.sessions == ["anna", "ben", "0"]


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
def test_of_more_than_fits_the_newest_stays(store: str, llama: nn.Module) -> None:
    ids = text(333)
    with cmr.attach(llama, **SETTINGS, budget=130, store=store) as memory:
        size = memory.nbytes
        memory.read(ids)
        assert memory.stats()["capacity_tokens"] == 128
        kept = [token for entry in memory.entries() for token in entry.token_ids]
        assert kept == ids[-len(kept) :].tolist() and len(kept) == 3 * 32 + 13
        memory.read(text(1000, seed=1))
        assert (memory.stats()["blocks"], memory.nbytes) == (4, size)
        llama(text(1, 20))
        assert memory.recalled[0]


def test_a_budget_of_one_block(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS, budget=32) as memory:
        memory.read(text(300))
        assert memory.stats()["blocks"] == 1
        greedy(llama, text(1, 100), tokens=90)
        assert memory.stats()["blocks"] == 1


reads = st.tuples(st.just("read"), st.sampled_from(NAMES), st.integers(1, 150))
chats = st.tuples(st.just("chat"), st.sampled_from(NAMES), st.integers(70, 130))
ends = st.tuples(st.just("clear"), st.sampled_from(NAMES), st.just(0))


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(actions=st.lists(st.one_of(reads, reads, chats, ends), min_size=3, max_size=9))
def test_no_session_ever_sees_another(
    actions: list[tuple[str, str, int]], tiny: Callable[[str], nn.Module]
) -> None:
    """Whatever is read, said and cleared, in a store small enough to be overwritten often."""
    llama = tiny("llama")
    with cmr.attach(llama, **SETTINGS, budget=192, blocks=4, ratio=0.0) as memory:
        memory.read(torch.stack([canary(name, 20) for name in NAMES]), sessions=NAMES)
        for what, name, tokens in actions:
            if what == "clear" and name in memory.sessions:
                memory.clear(name)
                assert name not in memory.sessions
            if what == "read":
                memory.read(canary(name, tokens, seed=tokens), sessions=[name])
            if what == "chat":
                with memory.session(name, create=True):
                    llama(canary(name, tokens)[None])
        with torch.no_grad(), memory.session(*NAMES[:2], *NAMES[2:], create=True):
            llama(torch.stack([canary(name, 20, seed=5) for name in reversed(NAMES)]))
            seen = memory.recalled
        for name, row in zip(NAMES, seen, strict=True):
            for passage in row:
                assert passage.session == name and is_of(name, passage.token_ids)
        for entry in memory.entries():
            assert is_of(entry.session, entry.token_ids)
        assert memory.tokens <= 192


def test_clear_forgets_one_session_or_all(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(torch.stack([canary(n, 100) for n in NAMES[:2]]), sessions=NAMES[:2])
        assert memory.clear("anna") == 4
        assert (memory.sessions, memory.tokens) == (["ben"], 100)
        ring = memory._core.ring
        free = ring.session[: ring.high_water] < 0
        for store in (ring.keys, ring.values):
            assert all((tensor[: ring.high_water][free] == 0).all() for tensor in store.values())
        assert (ring.index[: ring.high_water][free] == 0).all()
        assert (ring.token_ids[: ring.high_water][free] == 0).all()
        memory.read(canary("anna", 10), sessions=["anna"])
        assert len(memory.entries("anna")) == 1
        assert memory.clear() == 5
        assert (memory.sessions, memory.tokens, memory.entries()) == ([], 0, [])
        memory.read(canary("ben", 50), sessions=["ben"])
        assert is_of("ben", [t for e in memory.entries() for t in e.token_ids])


def test_a_session_that_was_cleared_is_read_no_more(llama: nn.Module) -> None:
    """Also by the rest of its batch, whose cache holds what was recalled before."""
    ids = text(2, 20)
    with cmr.attach(llama, **SETTINGS, refresh=100) as memory:
        memory.read(text(2, 200, seed=1), sessions=["anna", "ben"])
        with memory.session("anna", "ben"):
            cache = llama(ids, use_cache=True).past_key_values
            assert memory.recalled[0] and memory.recalled[1]
            memory.clear("anna")
        llama(ids[:, :1], past_key_values=cache)
        assert memory.recalled[0] == []


@pytest.mark.parametrize("how", ["kv", "states", "tokens", "residual"])
def test_what_a_row_reads_is_not_overwritten_under_it(how: str, llama: nn.Module) -> None:
    """Between two searches another session may take the place of what was recalled."""
    outs = []
    form = {"method": "weighted_sum"} if how == "residual" else {"store": how}
    for other in (5, 6):
        with cmr.attach(llama, **SETTINGS, budget=128, refresh=100, **form) as memory:
            memory.read(text(128, seed=1), sessions=["anna"])
            with memory.session("anna"):
                cache = llama(text(1, 20), use_cache=True).past_key_values
                memory.read(text(96, seed=other), sessions=["ben"])
                outs.append(llama(text(1, 1), past_key_values=cache).logits)
            assert memory.recalled[0]
    assert torch.equal(*outs)


def test_entries_are_blocks(llama: nn.Module) -> None:
    ids = text(70)
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(ids, sessions=["anna"])
        first, second, third = memory.entries()
        assert [e.token_ids for e in (first, second)] == [
            tuple(ids[:32].tolist()),
            tuple(ids[32:64].tolist()),
        ]
        assert [len(e.token_ids) for e in (first, second, third)] == [32, 32, 6]
        assert third.hidden_state.shape == (6, 64)
        assert third.layer_idx == memory.stats()["index_layer"]
        assert (third.session, third.position_idx, third.access_count) == ("anna", 64, 0)
        assert first.timestamp < second.timestamp < third.timestamp
        with memory.session("anna"):
            llama(text(1, 20))
        again = memory.entries("anna")
        assert {e.access_count for e in again} == {1}
        assert {e.last_access for e in again} == {3.0}  # the newest block then


def test_a_read_reports(llama: nn.Module) -> None:
    seen: list[tuple[int, int]] = []
    with cmr.attach(llama, **SETTINGS) as memory:
        report = memory.read(text(2, 100), progress=lambda done, total: seen.append((done, total)))
    assert (report.tokens, report.blocks) == (200, 8)
    assert report.seconds > 0 and report.tokens_per_second > 0
    assert seen[-1] == (200, 200)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_bar_is_shown(llama: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(100), progress=True)
    assert "100/100" in capsys.readouterr().err


def test_stats_add_up(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS, budget=320) as memory:
        memory.read(text(2, 100))
        llama(text(2, 20))
        stats = memory.stats()
    assert (stats["tokens"], stats["blocks"], stats["sessions"]) == (200, 8, 2)
    assert (stats["searches"], stats["recalls"], stats["written_blocks"]) == (1, 1, 8)
    assert stats["bytes"] == memory.nbytes
    per_token = 4 * (64 + len(stats["target_layers"]) * 2 * 2 * 16)
    assert 0 < stats["bytes_per_token"] - per_token < 30
    assert stats["active"] is True


def test_the_smaller_store_is_chosen(tiny: Callable[[str], nn.Module]) -> None:
    sizes = {}
    for name, want in (("gpt2", "states"), ("llama", "kv")):
        for store in ("auto", "kv", "states", "tokens"):
            with cmr.attach(tiny(name), store=store, window=64) as memory:
                sizes[store] = memory.nbytes
                if store == "auto":
                    assert memory.stats()["store"] == want
        assert sizes["auto"] == sizes[want] <= min(sizes["kv"], sizes["states"])
        assert sizes["tokens"] < sizes["auto"]
