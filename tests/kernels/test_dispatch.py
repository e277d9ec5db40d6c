"""Which implementation runs, why, and what becomes of a request that cannot be met."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Iterator

import pytest
import torch

from cmr.errors import KernelError
from cmr.kernels import dispatch
from cmr.kernels.score import state_scores


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing asked for, nothing remembered, before and after."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch._resolve.cache_clear()
    yield
    dispatch._resolve.cache_clear()


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        dispatch.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "triton" else find(name, *rest),
    )


@pytest.fixture
def some_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name, *rest: object())


def test_a_cpu_runs_the_specification_and_says_why() -> None:
    chosen = dispatch.implementation("cpu")
    assert chosen.name == "reference"
    assert str(chosen) == "reference (PyTorch: no Triton on device 'cpu')"
    assert dispatch.implementation(torch.device("cpu")) is chosen


def test_a_gpu_runs_triton_where_there_is_one(some_triton: None) -> None:
    assert dispatch.implementation("cuda").name == "triton"
    assert dispatch.implementation(torch.device("cuda", 1)).name == "triton"


@pytest.mark.parametrize("sees", [True, False])
def test_without_a_device_it_is_the_gpu_that_pytorch_sees(
    sees: bool, some_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    assert dispatch.implementation().name == ("triton" if sees else "reference")


def test_a_gpu_without_triton_falls_back_and_logs_it_once(
    no_triton: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cmr"):
        for _ in range(3):
            chosen = dispatch.implementation("cuda")
    assert (chosen.name, chosen.reason) == ("reference", "PyTorch: triton is not installed")
    assert len(caplog.records) == 1
    assert "triton is not installed" in caplog.text


def test_the_specification_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    for device in ("cpu", "cuda"):
        assert str(dispatch.implementation(device)) == "reference (PyTorch, as asked for)"


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_empty_variable_asks_for_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, value)
    assert "as asked for" not in dispatch.implementation("cpu").reason


def test_triton_on_a_cpu_cannot_be_met(some_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(KernelError, match=r"on device 'cpu'.*TRITON_INTERPRET=1"):
        dispatch.implementation("cpu")
    assert dispatch.implementation("cuda").name == "triton"


def test_triton_that_is_not_installed_cannot_be_met(no_triton: None) -> None:
    with dispatch.using("triton"), pytest.raises(KernelError, match="triton is not installed"):
        dispatch.implementation("cuda")


def test_a_request_that_cannot_be_met_fails_again(some_triton: None) -> None:
    with dispatch.using("triton"):
        for _ in range(2):
            with pytest.raises(KernelError):
                dispatch.implementation("cpu")


def test_the_interpreter_counts_as_asked_for(
    some_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.implementation("cpu").name == "reference", "only where triton is asked for"
    with dispatch.using("triton"):
        assert str(dispatch.implementation("cpu")) == "triton (interpreted, as asked for)"


def test_using_goes_before_the_variable_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    asked = dispatch.implementation("cpu")
    with pytest.raises(ZeroDivisionError), dispatch.using("auto"):
        assert dispatch.implementation("cpu") != asked
        with dispatch.using("reference"):
            assert dispatch.implementation("cpu") == asked
        assert dispatch.implementation("cpu") != asked
        raise ZeroDivisionError
    assert dispatch.implementation("cpu") == asked


def test_using_holds_for_all_threads() -> None:
    seen = []
    with dispatch.using("reference"):
        thread = threading.Thread(target=lambda: seen.append(dispatch.implementation("cpu")))
        thread.start()
        thread.join()
    assert [str(chosen) for chosen in seen] == ["reference (PyTorch, as asked for)"]


def test_an_unknown_name_raises_and_shows_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "one of auto, reference, triton expected, got 'cuda'"
    with pytest.raises(KernelError, match=wanted), dispatch.using("cuda"):
        pytest.fail("using() let it pass")
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(KernelError, match=wanted):
        dispatch.implementation("cpu")


def test_an_operation_asks_on_every_call(some_triton: None) -> None:
    states = torch.ones(1, 4, 8)
    with dispatch.using("triton"), pytest.raises(KernelError, match="on device 'cpu'"):
        state_scores(states, 2)
    assert state_scores(states, 2).norm.shape == (1, 4)


def test_an_operation_runs_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(dispatch, "_lazily", lambda host: lambda *_: ran.append(host))
    monkeypatch.setattr(dispatch, "REGISTERED", {})
    operation = dispatch.register(
        "dispatch_probe(Tensor(a!) out) -> ()",
        lambda out: ran.append("specification"),
        "nowhere:nothing",
        "cmr.score",
    )
    out = torch.zeros(1)
    operation(out)
    chosen = dispatch.Implementation("triton", "")
    monkeypatch.setattr(dispatch, "implementation", lambda kind: chosen)
    operation(out)
    assert ran == ["specification", "nowhere:nothing"]


def test_no_host_function_is_looked_for_before_it_is_needed() -> None:
    launch = dispatch._lazily("no_such_module:function")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        launch()


@pytest.mark.parametrize("host", sorted(dispatch.REGISTERED.values()))
def test_every_host_function_exists(host: str) -> None:
    pytest.importorskip("triton")
    module, _, function = host.partition(":")
    assert callable(getattr(importlib.import_module(f"cmr.kernels.gpu.{module}"), function))
