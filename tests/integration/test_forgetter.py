"""What is forgotten is nowhere any more; what may not be stored never was."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import UnknownSessionError
from cmr.memory.spans import holding_saved
from cmr.memory.store import Saved
from tests.integration.canaries import Traces, canary
from tests.integration.tiny import text
from tests.kernels.conftest import poisoned_buffers

__all__ = ["poisoned_buffers"]

SETTINGS: dict[str, Any] = {
    "window": 64,
    "threshold": 0.0,
    "budget": 128,
    "working_budget": 128,
    "long_term_budget": 512,
    "long_term_store": "kv",
}


class Letters:
    """A tokenizer of a letter a token."""

    @staticmethod
    def decode(ids: Any) -> str:
        return "".join(chr(0x4E00 + int(i)) for i in ids)

    @classmethod
    def encode(cls, text: str) -> torch.Tensor:
        return torch.tensor([ord(letter) - 0x4E00 for letter in text])


def numbers(memory: cmr.Memory, session: str | None = None) -> list[int]:
    return [block.id for block in memory.inspect(session)]


def test_a_forgotten_session_is_nowhere(llama: nn.Module, tmp_path: Path) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(torch.stack([canary("anna", 400), text(400)]), sessions=["anna", "ben"])
        memory.save(tmp_path / "m")
        traces = Traces(memory, "anna")
        with memory.session("anna", "ben"):
            cache = llama(text(2, 30), use_cache=True).past_key_values
            llama(text(2, 1), past_key_values=cache)
        here = {label for label in traces.needles.values() if not label.startswith("saved")}
        assert set(traces.in_process()) == here
        assert traces.in_folder(tmp_path, "anna")
        ours = len(memory.inspect("anna"))
        report = memory.forget("anna")
        assert report.blocks == ours and report.sessions == ("anna",) and report.bytes > 0
        assert report.files == (str((tmp_path / "m").resolve()),)
        assert not traces.in_process() and not traces.in_folder(tmp_path, "anna")
        assert memory.sessions == ["ben"] and memory.recalled == []
        assert len(memory.inspect("ben")) > 10
        with pytest.raises(UnknownSessionError):
            memory.forget("anna")
    with cmr.load(tmp_path / "m", llama) as memory:
        assert memory.sessions == ["ben"] and memory.tokens > 300


def test_blocks_can_be_named(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(320))
        assert memory.forget(ids=[2, 9]).blocks == 2
        assert numbers(memory) == [1, 3, 4, 5, 6, 7, 8, 10]
        assert memory.forget(ids=3).blocks == 1
        with pytest.raises(ValueError, match=r"ids: numbers of stored blocks expected.*\[2, 99\]"):
            memory.forget(ids=[1, 2, 99])
        assert numbers(memory) == [1, 4, 5, 6, 7, 8, 10], "nothing goes where one is wrong"
        with pytest.raises(ValueError, match="forget what"):
            memory.forget()
        assert memory.sessions == ["0"], "a session ends only when it is forgotten whole"


@pytest.mark.parametrize("how", ["ids", "session"])
def test_a_loaded_folder_forgets_whatever_things_are_called_here(
    how: str, llama: nn.Module, tmp_path: Path
) -> None:
    """Blocks that got other numbers, and a session that got another name."""
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(torch.stack([canary("anna", 100), text(100)]), sessions=["anna", "ben"])
        memory.save(tmp_path / "m")
        memory.clear()
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(64), sessions=["carl"])
        memory.load(tmp_path / "m")
        memory.rename("anna", "dora")
        traces = Traces(memory, "dora")
        assert traces.in_folder(tmp_path)
        if how == "ids":
            memory.forget(ids=numbers(memory, "dora"))
        else:
            memory.forget("dora")
        assert not traces.in_folder(tmp_path) and not traces.in_process()
    with cmr.load(tmp_path / "m", llama) as memory:
        assert memory.sessions == (["anna", "ben"] if how == "ids" else ["ben"])
        assert len(memory.inspect("ben")) == 4


@pytest.mark.parametrize("span", ["text", "ids"])
def test_a_span_of_text_is_forgotten_wherever_it_stands(span: str, llama: nn.Module) -> None:
    ids = text(320)
    secret = torch.tensor([11, 12, 13, 11, 12, 14])
    ids[60:66] = ids[200:206] = secret  # across the edge of two blocks, and inside one
    wanted: Any = Letters.decode(secret.tolist()) if span == "text" else secret
    with cmr.attach(llama, **SETTINGS, tokenizer=Letters()) as memory:
        memory.read(ids)
        memory.read(ids, sessions=["other"])
        report = memory.forget("0", text=wanted)
        assert report.blocks == 3 and numbers(memory, "0") == [1, 4, 5, 6, 8, 9, 10]
        assert len(memory.inspect("other")) == 10
        assert memory.forget(text=wanted).blocks == 3
        assert memory.forget(text=wanted).blocks == 0
        with pytest.raises(ValueError, match="an empty one"):
            memory.forget(text="")
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(ids)
        with pytest.raises(ValueError, match="token ids expected where no tokenizer is known"):
            memory.forget(text="x")


class Written(Letters):
    """A tokenizer of one letter of Latin-1 a token."""

    @staticmethod
    def decode(ids: Any) -> str:
        return bytes(map(int, ids)).decode("latin-1")


@pytest.mark.parametrize("span", ["gate code", "GATE CODE", "Gate \n\n CODE", "ｇate　ｃode"])
def test_a_span_is_the_same_in_any_case_here_and_in_files(
    span: str, llama: nn.Module, tmp_path: Path
) -> None:
    said = "." * 60 + "My gate\nCode" + "." * 130 + "Gate  code" + "." * 60
    ids = torch.tensor(list(said.encode("latin-1")))
    with cmr.attach(llama, **SETTINGS, tokenizer=Written()) as memory:
        memory.read(ids)
        memory.save(tmp_path / "m")
        saved = Saved.open(tmp_path / "m")
        there = holding_saved(saved, torch.ones(len(saved), dtype=torch.bool), span, Written.decode)
        assert len(memory.inspect(text=span)) == 1  # the other one lies in two blocks
        report = memory.forget(text=span)
        assert report.blocks == int(there.sum()) == 3
        for blank in ("", " \n"):
            with pytest.raises(ValueError, match="an empty one"):
                memory.forget(text=blank)
    with cmr.load(tmp_path / "m", llama, tokenizer=Written()) as memory:
        assert len(memory.inspect(text=span)) == 0 and memory.forget(text=span).blocks == 0


def test_what_is_old_is_forgotten(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(text(64))
        now[0] += 60
        memory.read(text(64, seed=1))
        assert memory.forget(older_than=61).blocks == 0
        assert memory.forget(older_than=30).blocks == 2
        assert numbers(memory) == [3, 4]
        with pytest.raises(ValueError, match="older_than: seconds of at least 0 expected, got -1"):
            memory.forget(older_than=-1)


def test_a_time_to_live(llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    ids = text(96)
    with cmr.attach(llama, **SETTINGS, ttl=100) as memory:
        memory.read(ids, sessions=["long"])
        with memory.session("short", create=True, ttl=10):
            memory.read(ids)
            cache = llama(ids[None, :40], use_cache=True).past_key_values
            assert memory.recalled[0]
            now[0] += 11
            llama(ids[None, 40:41], past_key_values=cache)
            assert memory.recalled == [[]]
        assert {block.session for block in memory.inspect()} == {"long"}
        assert memory.inspect()[0].expires == 1_100.0
        now[0] += 100
        assert memory.inspect().total == 0
        assert memory.stats()["expired_blocks"] == 6
    with pytest.raises(cmr.ConfigError, match="ttl: a number of seconds above 0 expected, got 0"):
        cmr.attach(llama, ttl=0)


def test_an_ephemeral_session_leaves_no_trace(llama: nn.Module, tmp_path: Path) -> None:
    with cmr.attach(llama, **{**SETTINGS, "budget": 512}) as memory:
        with memory.session("anna", create=True, ephemeral=True):
            memory.read(canary("anna", 100))
        memory.read(text(800), sessions=["ben"])
        assert {block.tier for block in memory.inspect("anna")} == {"recent"}
        assert {block.tier for block in memory.inspect("ben")} == {"recent", "working", "long_term"}
        memory.fork("anna", "annas copy")
        traces = Traces(memory, "anna")
        memory.save(tmp_path / "m")
        assert not traces.in_folder(tmp_path, "anna")
        memory.read(canary("anna", 900), sessions=["anna"])
        assert {b.tier for b in memory.inspect() if b.session != "ben"} == {"recent"}
        with pytest.raises(ValueError, match="only 'anna' is ephemeral"):
            memory.merge("anna", "ben")
        with (
            pytest.raises(ValueError, match="settled when it is made"),
            memory.session("anna", ephemeral=False),
        ):
            pass
        memory.forget("anna")
        memory.forget("annas copy")
        assert not traces.in_process()


@pytest.mark.parametrize("store", ["kv", "states", "tokens"])
def test_what_opts_out_is_never_stored(store: str, llama: nn.Module) -> None:
    ids, keep = text(2, 200), torch.ones(2, 200, dtype=torch.bool)
    ids[0, 50:110] = canary("anna", 60)
    keep[0, 50:110] = False
    with cmr.attach(llama, **SETTINGS, store=store) as memory:
        memory.read(ids, keep=keep)
        kept = [t for block in memory.inspect("0") for t in block.token_ids]
        assert kept == ids[0][keep[0]].tolist()
        starts = [block.start for block in memory.inspect("0")]
        assert starts == [0, 32, 110, 128, 160, 192], "positions stay true"
        ring = memory._core.ring
        for slot in ring.ledger.slots_of(None).tolist():
            gone, tier = ring.positions[slot] < 0, ring.ledger.tier_of(slot)
            for part in ring.parts[tier].values():
                rows = part[slot - ring.ledger.tiers[tier].first]
                rows = rows if rows.ndim < 3 else rows.transpose(0, 1)
                assert not rows[gone].any() and rows[~gone].any()
        llama(ids[:, 120:160])
        assert all(p.token_ids for p in memory.recalled[0])
        with pytest.raises(TypeError, match="keep must be a bool tensor"):
            memory.read(ids, keep=keep.long())


def test_a_function_decides_what_is_stored(llama: nn.Module) -> None:
    """Of what is read and of what leaves the window while generating."""
    secret = int(canary("anna", 1))
    ids = text(1, 150)
    ids[0, 3::7] = secret

    def keep(token_ids: torch.Tensor) -> torch.Tensor:
        return token_ids != secret

    with cmr.attach(llama, **SETTINGS, keep=keep) as memory:
        memory.read(ids)
        llama(ids)
        stored = [t for block in memory.inspect() for t in block.token_ids]
        assert len(stored) > 150 and secret not in stored
    with cmr.attach(llama, **SETTINGS, keep=lambda ids: torch.zeros(3)) as memory:
        with pytest.raises(TypeError, match=r"keep: a bool tensor expected .* got torch.float32"):
            memory.read(ids)
        assert memory.tokens == 0
    with cmr.attach(llama, **SETTINGS, keep=lambda ids: torch.zeros_like(ids).bool()) as memory:
        assert memory.read(ids).blocks == 0


def test_pinned_blocks_stay(llama: nn.Module) -> None:
    with cmr.attach(llama, window=64, budget=128) as memory:
        memory.read(text(128))
        memory.pin([1, 2])
        memory.read(text(320, seed=3))
        assert numbers(memory)[:2] == [1, 2] and len(memory.inspect()) == 4
        with pytest.raises(ValueError, match="at most 2 blocks of the tier 'recent'"):
            memory.pin(numbers(memory)[2])
        memory.pin([1, 2], pinned=False)
        memory.read(text(128, seed=4))
        assert not {1, 2} & set(numbers(memory))


def test_inspecting(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS, tokenizer=Letters()) as memory:
        memory.read(text(2, 200), sessions=["anna", "ben"])
        word = Letters.decode(text(2, 200)[1, 40:43].tolist())
        found = memory.inspect(text=word)
        assert [(b.session, b.start, b.end) for b in found] == [("ben", 32, 64)]
        assert memory.inspect("anna", start=70, end=130).total == 3
        assert [b.id for b in memory.inspect(order="newest", limit=2)] == [14, 13]
        assert len(memory.inspect(limit=2)) == 2 and memory.inspect(limit=2).total == 14
        assert {b.tier for b in memory.inspect(tier="working")} == {"working"}
        assert word in memory.inspect(text=word)[0].text
        from rich.console import Console

        console = Console(width=120, record=True, file=io.StringIO())
        console.print(memory.inspect("ben", limit=3).table())
        shown = console.export_text()
        assert "ben" in shown and "3 of 7 blocks" in shown and word in shown
        for settings, message in (
            ({"tier": "top"}, "tier: one of recent, working, long_term expected, got 'top'"),
            ({"order": "size"}, "order: one of .* expected, got 'size'"),
            ({"min_relevance": 2}, r"min_relevance: a number in \[0, 1\]"),
            ({"limit": -1}, "limit: 0 or more expected, got -1"),
        ):
            with pytest.raises(ValueError, match=message):
                memory.inspect(**settings)
        with pytest.raises(UnknownSessionError):
            memory.inspect("carl")


def test_nothing_logs_contents(llama: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    with cmr.attach(llama, **SETTINGS, tokenizer=Letters()) as memory:
        memory.read(canary("anna", 300), sessions=["anna"])
        memory.consolidate()
        with memory.session("anna"):
            llama(canary("anna", 30)[None])
        assert "anna" not in repr(memory.inspect()) + repr(memory.forget("anna", ids=[1]))[:40]
        memory.forget("anna")
    assert not any("anna" in record.getMessage() for record in caplog.records)


def recalling(memory: cmr.Memory, secret: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cache of a text that has recalled the secret, which is evicted half a minute later."""
    model = memory._core.adapter.model
    memory.read(secret, sessions=["anna"])
    with memory.session("anna"), torch.no_grad():
        cache = model(canary("anna", 40, seed=9)[None], use_cache=True).past_key_values
    assert memory.recalled[0], "it was not recalled"
    later = time.time() + 30
    monkeypatch.setattr(time, "time", lambda: later)
    memory.read(canary("anna", 400, seed=6), sessions=["anna"])
    assert not any(block.token_ids[4:] == secret[4:32].tolist() for block in memory.inspect())
    return cache


@pytest.mark.parametrize("how", ["text", "older_than", "over"])
def test_what_was_recalled_and_then_evicted_is_forgotten_in_copies(
    how: str, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block of the store is meant any more; a text that goes on still has copies of one."""
    secret = canary("anna", 64, seed=5)
    settings = {"ttl": 60.0} if how == "over" else {}
    with cmr.attach(llama, window=64, budget=160, threshold=0.0, gain=0.0, **settings) as memory:
        cache = recalling(memory, secret, monkeypatch)
        record = cache.layers[0].owner.record
        assert record.search.recall is not None
        if how == "text":
            memory.forget("anna", text=secret[4:20].tolist())
        elif how == "older_than":
            memory.forget(older_than=3600)
        else:
            over = time.time() + 31
            monkeypatch.setattr(time, "time", lambda: over)
            assert not memory._core.keeper.expire(), "a block of the store is over"
        assert record.search.recall is None and memory.recalled == []


def test_a_span_across_two_blocks_is_found_where_their_link_was_cut(
    llama: nn.Module, tmp_path: Path
) -> None:
    """As of a text whose blocks came back one by one, here and in a folder."""
    words = canary("anna", 96, seed=5)
    with cmr.attach(llama, window=64, threshold=0.0) as memory:
        memory.read(words, sessions=["anna"])
        for links in (memory._core.ring.successor, memory._core.ring.predecessor):
            links.fill_(-1)
        memory.save(tmp_path / "m")
        report = memory.forget("anna", text=words[28:36].tolist())
    assert report.blocks == 2 and report.files == (str(tmp_path / "m"),)
    assert len(cmr.memory.store.Saved.open(tmp_path / "m")) == 1
