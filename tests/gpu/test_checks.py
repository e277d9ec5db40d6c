"""The checks find what they are there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cmr.kernels import dispatch
from tests.gpu import checks, forwards
from tests.gpu.forwards import Forward
from tests.gpu.inputs import Call, Inputs, Maker, NotHere, Outputs, tensors, widened

CPU = "cpu"


def call(run: Callable[[torch.Tensor], torch.Tensor]) -> Call:
    def make(device: str, dtype: torch.dtype, seed: int) -> Inputs:
        return {"x": Maker(device, dtype, seed).normal(8, 8)}

    def call_it(given: Inputs, out: torch.Tensor) -> Outputs:
        return (out.copy_(run(given["x"])),)

    return Call("made up", "none", "cmr.score", make, call_it, lambda g: torch.empty_like(g["x"]))


def specified() -> bool:
    """Whether the specification was asked for; what else runs stands for a kernel."""
    return dispatch.implementation(CPU).reason == "PyTorch, as asked for"


def test_a_right_one_passes_all() -> None:
    right = call(lambda x: x.sin())
    checks.check_against_the_specification(right, CPU, torch.bfloat16)
    checks.check_repeats(right, CPU, torch.bfloat16, 3)
    checks.check_replay(right, CPU, torch.bfloat16)
    checks.check_allocates_nothing(right, CPU, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_beyond_that_of_plain_pytorch(dtype: torch.dtype) -> None:
    slightly = call(lambda x: x.sin() if specified() else 1.02 * x.sin())
    with pytest.raises(AssertionError, match="made up, output 0: worst at"):
        checks.check_against_the_specification(slightly, CPU, dtype)


def test_an_infinity_that_is_missing() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(x > 0, float("-inf") if specified() else -1e30)

    with pytest.raises(AssertionError, match="infinities"):
        checks.check_against_the_specification(call(run), CPU, torch.float32)


def test_another_integer() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return x.copysign(torch.ones(())) if specified() else x

    picks = call(run)

    def as_integers(given: Inputs, out: torch.Tensor) -> Outputs:
        return tuple((1000 * t).long() for t in picks.run(given, out))

    wrong = Call("slots", "none", "cmr.score", picks.make, as_integers, picks.allocate)
    with pytest.raises(AssertionError, match="slots, output 0"):
        checks.check_against_the_specification(wrong, CPU, torch.float32)


def test_a_result_that_changes_from_time_to_time() -> None:
    times = iter(range(100))
    drifting = call(lambda x: x + 1e-6 * (next(times) == 2))
    with pytest.raises(AssertionError, match="elements differ in 5 repeats"):
        checks.check_repeats(drifting, CPU, torch.float32, 5)


def test_a_replay_that_does_not_read_its_inputs() -> None:
    kept: dict[int, torch.Tensor] = {}

    def run(x: torch.Tensor) -> torch.Tensor:
        return kept.setdefault(x.data_ptr(), x.clone())

    with pytest.raises(AssertionError, match="the replay differs"):
        checks.check_replay(call(run), CPU, torch.float32)


def test_a_call_without_outputs_cannot_claim_to_allocate_nothing() -> None:
    made = call(torch.sin)
    bare = Call("bare", "none", "cmr.score", made.make, lambda g, _: (g["x"].sin(),))
    with pytest.raises(AssertionError, match="takes no outputs"):
        checks.check_allocates_nothing(bare, CPU, torch.float32)


def test_bits_tell_zeros_apart_and_nan_equals_itself() -> None:
    x = torch.tensor([0.0, float("nan")])
    assert torch.equal(checks.bits(x), checks.bits(x.clone()))
    assert not torch.equal(checks.bits(x), checks.bits(-x))


def test_inputs_are_widened_and_listed_whole() -> None:
    half, numbers = torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)
    inputs = {"a": half, "b": (numbers, (half, half)), "k": 3, "n": None}
    wide = widened(inputs)
    assert [t.dtype for t in tensors(wide)] == [
        torch.float32, torch.int64, torch.float32, torch.float32,
    ]  # fmt: skip
    assert wide["k"] == 3 and wide["n"] is None


def going(monkeypatch: pytest.MonkeyPatch, *runs: Sequence[Forward]) -> None:
    """In place of a model's forwards, run by run, these."""
    turns = iter(runs)
    memory = type("Memory", (), {"pause": lambda self: None, "resume": lambda self: None})()

    @contextmanager
    def remembering(*_: Any) -> Iterator[tuple[Any, Any]]:
        yield None, memory

    monkeypatch.setattr(forwards, "remembering", remembering)
    monkeypatch.setattr(forwards, "forwards", lambda *_, **__: iter(next(turns)))


def made(other: float = 0.0, waits: int | None = None, at: str = "search") -> list[Forward]:
    """One forward of each kind; that of the kind `at` has other logits or waits."""
    return [
        Forward(
            kind,
            torch.tensor([[1.0, 0.5 + (other if kind == at else 0.0)]]),
            waits if kind == at else 0,
        )
        for kind in ("prompt", "step", "search", "leaving")
    ]


def test_a_search_that_reads_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    going(monkeypatch, made(), made(1e-4))
    forwards.as_specified(CPU)
    going(monkeypatch, made(), made(0.01))
    with pytest.raises(AssertionError, match=r"forward 2, a search: 0\.01 of the largest"):
        forwards.as_specified(CPU)


def test_steps_that_never_search_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    going(monkeypatch, made()[:2], made()[:2])
    with pytest.raises(AssertionError):
        forwards.as_specified(CPU)


@pytest.mark.parametrize(("kind", "waits"), [("step", 1), ("search", 1), ("leaving", 2)])
def test_a_wait_too_many(kind: str, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards, "_waits", lambda model: 0)
    going(monkeypatch, [], made(waits=waits - 1, at=kind))
    forwards.waits_of_each_kind("cuda")
    going(monkeypatch, [], made(waits=waits, at=kind))
    with pytest.raises(AssertionError, match=f"a {kind}: {waits} waits"):
        forwards.waits_of_each_kind("cuda")


def test_another_stream_that_gives_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    going(monkeypatch, made(), made(1e-6))
    with pytest.raises(AssertionError):
        forwards.on_another_stream(CPU)


def test_a_second_device_that_gives_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(NotHere, match="one device alone"):
        forwards.on_a_second_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    going(monkeypatch, made(), made(0.01))
    with pytest.raises(AssertionError, match=r"forward 2: 0\.01 of the largest logit"):
        forwards.on_a_second_device("cuda")
    going(monkeypatch, made(), made(1e-4))
    forwards.on_a_second_device("cuda")


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Stream:
        def __init__(self, name: str = "made") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            order.append(f"{self.name} behind {other.name}")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        order.append(f"on {stream.name}")
        yield

    for name, value in {
        "Stream": Stream, "current_stream": lambda: Stream("current"), "stream": on,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    with forwards._streams("cuda", 2)[1]():
        order.append("inside")
    assert order == ["made behind current", "on made", "inside", "current behind made"]
