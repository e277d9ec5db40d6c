"""What times, captures, flushes and counts: on the CPU, and on a GPU that is not there."""

from __future__ import annotations

import subprocess
import time

import pytest
import torch

from benchmarks.ops import bandwidth
from benchmarks.shared import device as module
from benchmarks.shared.device import Gpu, Processor, asked_of_the_driver, device
from tests.benchmarks.gpu.fake import FREE, Fake, Graph, OnTheHost


@pytest.mark.parametrize("own", [Processor(), OnTheHost()])
def test_each_call_is_timed_and_what_comes_before_is_not(own: Processor, fake: Fake) -> None:
    order: list[str] = []

    def call() -> None:
        order.append("call")
        time.sleep(0.002)

    def before() -> None:
        order.append("before")
        time.sleep(0.02)

    seconds = own.each(call, 3, before)
    assert order == ["before", "call"] * 3
    assert len(seconds) == 3 and all(0.002 <= one < 0.02 for one in seconds)
    assert len(own.each(call, 2)) == 2


def test_a_graph_is_captured_behind_a_first_call_on_another_stream(fake: Fake) -> None:
    called: list[tuple[int, int]] = []

    def call() -> str:
        called.append((fake.calls["stream"], fake.calls["graph"]))
        return "written"

    replay, how, results = Gpu().captured(call)
    assert called == [(1, 0), (1, 1)], "once to compile, once in the capture"
    assert (how, results) == ("graph", "written")
    before = Graph.replays
    replay()
    assert Graph.replays == before + 1 and len(called) == 2


def test_a_cpu_repeats_the_call_itself() -> None:
    called: list[int] = []
    replay, how, results = Processor().captured(lambda: called.append(1))
    assert (called, how, results) == ([], "call", None)
    replay()
    assert called == [1]


def test_waits_are_those_that_pytorch_tells_of(fake: Fake) -> None:
    own = Gpu()
    assert own.counted(lambda: None)["waits"] == 0, "that the mode is on is no wait"
    assert own.counted(lambda: [fake.waits(), fake.waits()])["waits"] == 2
    assert fake.mode == 0, "and off again"


def test_launches_are_what_a_profiler_sees_on_the_device(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Gpu().launches(lambda: fake.launched(3)) == 3
    assert Gpu().launches(lambda: None) is None, "it saw nothing: it may not look"
    monkeypatch.setattr(torch.profiler, "supported_activities", set)
    assert Gpu().launches(lambda: fake.launched(3)) is None


def test_a_cpu_counts_operations_without_views() -> None:
    x = torch.ones(4, 4)
    found = Processor().counted(lambda: (x[1:].t() + 1, torch.empty(3), x.view(-1).sum()))
    assert found == {"operations": 2, "launches": None, "waits": None}


def test_a_broken_device_is_noticed(fake: Fake) -> None:
    assert Gpu().healthy()
    fake.broken = True
    assert not Gpu().healthy()


def test_the_flush_is_as_large_as_fits(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    own = OnTheHost()
    monkeypatch.setattr(module, "FLUSHED", 1000)
    own.flush()
    assert own._other is not None and own._other.numel() == 1000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80, 100))
    other = OnTheHost()
    other.flush()
    assert other._other is not None and other._other.numel() == 10


def test_a_gpu_is_described(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "580.65.06, 1980, 2619, 1980, 2619, 34, 71.52, 700.00\n"
    asked: list[list[str]] = []

    def answered(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, said, "")

    monkeypatch.setattr(module.subprocess, "run", answered)
    found = Gpu().described()
    assert found["capability"] == "9.0" and found["processors"] == 132
    assert found["driver_version"] == "580.65.06" and found["clocks.sm"] == "1980"
    assert asked[0][-2:] == ["-i", "GPU-0-1"], "of several GPUs the one that is measured"
    assert device("cuda").name().startswith("NVIDIA H100")


@pytest.mark.parametrize(
    "error", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("", 1)]
)
def test_a_driver_that_says_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module.subprocess, "run", raising)
    assert "not known" in asked_of_the_driver()["driver_version"]


def test_a_pass_of_the_bandwidth_is_a_part_of_what_is_free(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bandwidth.most_mib("cpu") == bandwidth.MIB
    assert bandwidth.most_mib("cuda") == bandwidth.MOST_MIB >= bandwidth.ENOUGH_MIB
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, FREE))
    assert bandwidth.most_mib("cuda") == 1536
