"""Saving while others use the memory: one consistent snapshot, the lock in short pieces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import StoreBusyError, UnknownSessionError
from cmr.integration.files.content import MemoryContent
from cmr.integration.requests.lock import FairLock
from cmr.memory.store import Saved, datawriter, saver
from tests.integration.canaries import Traces, canary
from tests.integration.tiny import text

SETTINGS: dict[str, Any] = {
    "window": 64,
    "threshold": 0.0,
    "budget": 128,
    "working_budget": 128,
    "long_term_budget": 512,
    "long_term_store": "kv",
}


def filled(model: nn.Module, **settings: Any) -> cmr.Memory:
    """Two sessions over three tiers."""
    memory = cmr.attach(model, **{**SETTINGS, **settings})
    memory.read(torch.stack([canary("anna", 300), canary("ben", 300)]), sessions=["anna", "ben"])
    return memory


def aside(*targets: Callable[[], Any], seconds: float = 60.0) -> None:
    """Run something in threads of their own, and wait for all of them."""
    failed: list[BaseException] = []

    def run(target: Callable[[], Any]) -> None:
        try:
            target()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in targets]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    if failed:
        raise failed[0]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], list[int]]:
    """Has something happen before each part of a save, which is told its number."""

    def prepare(what: Callable[[int], None]) -> list[int]:
        real, calls = MemoryContent.rows, []

        def rows(self: MemoryContent, kind: int, part: str, at: torch.Tensor) -> torch.Tensor:
            calls.append(len(calls))
            what(calls[-1])
            return real(self, kind, part, at)

        monkeypatch.setattr(MemoryContent, "rows", rows)
        return calls

    return prepare


def content(path: Path) -> tuple[Any, ...]:
    """All that a folder holds, to be compared bit for bit."""
    saved = Saved.open(path)
    saved.verify()
    order = saved.numbers.argsort()
    rows = {}
    for batch in saved.batches():
        for name, part in batch.parts.items():
            for number, row in zip(saved.numbers[batch.positions].tolist(), part, strict=True):
                rows[number, name] = row.contiguous().view(torch.uint8).numpy().tobytes()
    columns = {name: column[order].tolist() for name, column in saved.columns.items()}
    return saved.header, saved.numbers[order].tolist(), columns, rows


def test_what_is_saved_is_what_was_stored_when_it_began(
    llama: nn.Module, tmp_path: Path, between: Any
) -> None:
    """Blocks sink, change places, are evicted and joined, and others come into their slots."""
    with filled(llama) as memory:
        memory.save(tmp_path / "before")
        want, ring = content(tmp_path / "before"), memory._core.ring

        def swap() -> None:
            slots = [int(ring.ledger.held(tier)[0]) for tier in (0, 1)]
            ring.swap(*slots)

        happens = [
            lambda: memory.read(canary("carl", 64), sessions=["carl"]),
            swap,
            lambda: memory.lift("anna", "ben"),
            lambda: memory.read(canary("carl", 400, seed=1), sessions=["carl"]),
            lambda: memory.merge("ben", "anna"),
            lambda: memory.read(canary("dora", 600), sessions=["dora"]),
        ]
        calls = between(lambda n: aside(*happens[n : n + 1]))
        memory.save(tmp_path / "m")
        assert len(calls) > len(happens), "all of it happened between parts"
        assert want[1] != [block.id for block in memory.inspect()], "much has left"
    got = content(tmp_path / "m")
    for one, other in zip(want, got, strict=True):
        assert one == other


def test_a_later_save_goes_on_from_it(
    llama: nn.Module, tmp_path: Path, between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "SHARD_BYTES", 1 << 16)
    with filled(llama) as memory:
        between(lambda n: n == 1 and aside(lambda: memory.read(text(200), sessions=["carl"])))
        memory.save(tmp_path / "m")
        assert memory.save(tmp_path / "m").bytes_reused > 0
        memory.save(tmp_path / "anew")
        assert content(tmp_path / "m") == content(tmp_path / "anew")


def test_the_lock_is_held_for_one_part_at_a_time_and_never_while_writing(
    llama: nn.Module, tmp_path: Path, between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(FairLock):
        holds = 0

        def acquire(self, timeout: float | None = None, frame: FrameType | None = None) -> bool:
            self.holds += not self.mine
            return super().acquire(timeout, frame)

    with filled(llama) as memory:
        lock = memory._core.lock = Counting()
        held: list[bool] = []
        write = datawriter._write_all
        monkeypatch.setattr(
            datawriter, "_write_all", lambda *given: (held.append(lock.mine), write(*given))
        )
        calls = between(lambda n: held.append(lock.mine))
        memory.save(tmp_path / "m")
        assert len(held) > len(calls) > 15 and not any(held)
        assert lock.holds >= len(calls) + 2
        assert not lock.mine


@pytest.mark.parametrize("how", ["forget", "clear"])
def test_who_forgets_waits_for_the_save_and_nothing_comes_back(
    how: str, llama: nn.Module, tmp_path: Path, between: Any
) -> None:
    with filled(llama) as memory:
        traces, forgetting = Traces(memory, "anna"), []

        def begin(call: int) -> None:
            if call == 3:
                forgetting.append(threading.Thread(target=getattr(memory, how), args=("anna",)))
                forgetting[0].start()
            if call > 3 and not memory._files._turn.waiting:
                time.sleep(0.01)
            if call == 10:
                assert forgetting[0].is_alive() and "anna" in memory.sessions

        between(begin)
        memory.save(tmp_path / "m")
        forgetting[0].join(30)
        assert not forgetting[0].is_alive() and memory.sessions == ["ben"]
        assert not traces.in_process()
        if how == "forget":  # `clear` leaves files alone
            assert not traces.in_folder(tmp_path, "anna")
            assert content(tmp_path / "m")[0]["sessions"][0]["name"] == "ben"


@pytest.mark.parametrize("beside", [True, False])
def test_what_expires_meanwhile_is_not_in_the_folder(
    beside: bool,
    llama: nn.Module,
    tmp_path: Path,
    between: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether somebody else has it zeroed by then, or not."""
    with cmr.attach(llama, **SETTINGS) as memory:
        with memory.session("anna", create=True, ttl=3600):
            memory.read(canary("anna", 200))
        memory.read(canary("ben", 200), sessions=["ben"])
        traces, clock = Traces(memory, "anna"), time.time

        def pass_time(call: int) -> None:
            if call == 4:
                monkeypatch.setattr(time, "time", lambda: clock() + 7200)
                if beside:
                    aside(memory._core.keeper.expire)

        between(pass_time)
        report = memory.save(tmp_path / "m")
        assert not traces.in_folder(tmp_path)
        saved = Saved.open(tmp_path / "m")
        assert (saved.id, len(saved)) == (report.id, report.blocks) == (report.id, 7)
        memory._core.keeper.expire()
        assert memory.save(tmp_path / "m").blocks == 7, "it goes on from there"
        assert not traces.in_folder(tmp_path)


def test_a_save_that_fails_leaves_nothing_behind(
    llama: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with filled(llama) as memory:
        with monkeypatch.context() as patch:
            patch.setattr(datawriter, "_write_all", fail)
            with pytest.raises(OSError, match="no space left"):
                memory.save(tmp_path / "m")
        assert memory._core.ring.on_change is None
        aside(lambda: memory.save(tmp_path / "m"), lambda: memory.forget("anna"))
        assert memory.sessions == ["ben"]


def test_inside_a_forward_of_its_own_nobody_waits_for_another_save(
    llama: nn.Module, tmp_path: Path, between: Any
) -> None:
    with filled(llama) as memory:
        refused = []

        def inside(call: int) -> None:
            if call == 2:
                with memory._core.lock, pytest.raises(StoreBusyError, match="after the forward"):
                    memory.save(tmp_path / "other")
                refused.append(True)

        between(lambda n: aside(lambda: inside(n)))
        memory.save(tmp_path / "m")
        assert refused
        with memory._core.lock:
            memory.save(tmp_path / "other")
    assert content(tmp_path / "m") == content(tmp_path / "other")


def test_saving_forgetting_loading_and_upkeep_never_wait_for_each_other_for_ever(
    llama: nn.Module, tmp_path: Path
) -> None:
    with filled(llama, long_term_budget=4096) as memory:
        memory.save(tmp_path / "given", sessions=["ben"])
        memory.rename("ben", "benjamin")

        def saving() -> None:
            for n in range(8):
                memory.save(tmp_path / f"m{n % 2}")

        def loading() -> None:
            for _ in range(8):
                memory.load(tmp_path / "given")
                memory.clear("ben")  # `forget` would forget it in the folder, too

        def reading() -> None:
            for n in range(8):
                with memory._core.lock:
                    memory.read(text(70, seed=n), sessions=["carl"])

        def tidying() -> None:
            for _ in range(8):
                memory.consolidate()
                memory.lift("anna")

        def forgetting() -> None:
            for _ in range(8):
                try:
                    memory.forget("carl")
                except UnknownSessionError:
                    time.sleep(0.01)

        aside(saving, loading, reading, tidying, forgetting, seconds=120)
        assert memory._core.ring.on_change is None
        # None of them left anything behind that the next one stumbles over.
        aside(saving, loading, seconds=60)
    with cmr.load(tmp_path / "m1", llama) as memory:
        assert {"anna", "benjamin"} <= set(memory.sessions)
