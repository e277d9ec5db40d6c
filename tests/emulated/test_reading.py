"""A text is read in windows, on a GPU several at a time: what is stored is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import NonFiniteStateError
from cmr.integration import reader
from tests.emulated.device import Device, moved
from tests.integration.tiny import READS_ALL, build, text

WINDOW = 64
SETTINGS: dict[str, Any] = {"window": WINDOW, "left_context": 0, "budget": 4096, **READS_ALL}


@pytest.fixture(params=["here", "there"])
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    """A tiny model on a CPU, and on the emulated GPU."""
    there = request.param == "there"
    with torch.no_grad(), Device().running() if there else nullcontext():
        yield moved(build("llama")) if there else build("llama")


def stored(memory: cmr.Memory) -> dict[str, Any]:
    """All that a memory has and has learnt."""
    core = memory._core
    found = {name: x.cpu() for tier in core.ring.parts for name, x in tier.items()}
    found |= {name: x.cpu() for name, x in core.ring.columns._asdict().items()}
    found |= {f"score {name}": x for name, x in core.scorer.state().items()}
    return found | {"text": memory.tokens, "position": core.table.position(0)}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, x in one.items():
        alike = x.equal(other[name]) if isinstance(x, torch.Tensor) else x == other[name]
        assert alike, f"{name} differs: {x} and {other[name]}"


@contextmanager
def window(model: nn.Module, number: int, spoil: Any) -> Iterator[None]:
    """In the n-th forward from now on, counted from 0, `spoil` changes what a layer gives."""
    count = iter(range(1_000))

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return spoil(output) if next(count) == number else None

    handle = model.model.layers[1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def failing(_: Any) -> None:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("bad", range(5))
@pytest.mark.parametrize("kind", ["not finite", "fails"])
def test_what_was_read_before_a_bad_window_is_stored(model: nn.Module, kind: str, bad: int) -> None:
    """All of it and nothing else, as if the text had ended there."""
    first, ids, at = text(WINDOW, seed=2), text(5 * WINDOW - 10), bad * WINDOW
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(first, sessions=["anna"])
        if bad:
            memory.read(ids[:at], sessions=["anna"])
        wanted = stored(memory)
    error: Any = pytest.raises(RuntimeError, match="out of memory")
    spoil: Any = failing
    if kind == "not finite":
        said = rf"'anna'.* position \d+ .*from position {WINDOW + at} on"
        error, spoil = pytest.raises(NonFiniteStateError, match=said), lambda x: x * torch.nan
    with cmr.attach(model, **SETTINGS) as memory:
        memory.read(first, sessions=["anna"])
        with window(model, bad, spoil), error:
            memory.read(ids, sessions=["anna"])
        same(stored(memory), wanted)
        memory.read(ids[at:], sessions=["anna"])
        assert memory.tokens == len(first) + len(ids), "it goes on where it ended"


WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"recall": True},
    {"scoring_method": "surprise"},
    {"store": "states"},
)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_several_windows_at_a_time_are_stored_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    ids, found = text(5 * WINDOW - 10), {}
    settings = {**SETTINGS, **way}
    reading = {"recall": settings.pop("recall", False)}
    with torch.no_grad(), Device().running() as device:
        model = moved(build("llama"))
        for at_once in (1, 2, 3):
            monkeypatch.setattr(reader, "WINDOWS_THERE", at_once)
            with cmr.attach(model, **settings) as memory:
                with device.counting() as count:
                    memory.read(ids, sessions=["anna"], **reading)
                found[at_once] = stored(memory), count.waited
    for at_once in (2, 3):
        same(found[at_once][0], found[1][0])
    if not way:
        assert found[3][1] < found[2][1] < found[1][1], "a look for several windows"


@pytest.mark.parametrize(
    ("way", "recall", "wanted"),
    [
        ({}, False, [3, 2]),
        ({}, True, [1] * 5),  # a window is to find what the one before it has stored
        ({"scoring_method": "gradient_based"}, False, [1] * 5),  # one graph at a time
    ],
)
def test_how_many_windows_are_stored_together(
    monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], recall: bool, wanted: list[int]
) -> None:
    together: list[int] = []
    store = reader.Reader._store

    def counted(self: Any, text: Any, taken: Any, sessions: Any) -> Any:
        together.append(len(taken))
        return store(self, text, taken, sessions)

    monkeypatch.setattr(reader.Reader, "_store", counted)
    with cmr.attach(build("llama"), **SETTINGS, **way) as memory:
        memory.read(text(5 * WINDOW - 10), recall=recall)
        assert together == [1] * 5, "on a CPU nothing is gained"
        together.clear()
        monkeypatch.setattr(memory._reader, "_at_once", 3)
        memory.read(text(5 * WINDOW - 10, seed=2), recall=recall)
        assert together == wanted
