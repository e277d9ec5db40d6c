"""What is launched again is what Triton would have launched, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from benchmarks.compiled.compiler import starting
from cmr.kernels import (
    again,
    attention_partials,
    attention_with_lse,
    ranges,
    reweave_paged,
    using,
)
from cmr.kernels.gpu import _launch

HEADS, GROUPS, DIM, BLOCK, SLOTS = 4, 2, 16, 16, 8
Call = Callable[[], object]


def made(*shape: int, dtype: torch.dtype = torch.bfloat16, at: int = 0) -> torch.Tensor:
    """Numbers that start `at` elements behind an aligned address."""
    whole = torch.randn(at + torch.Size(shape).numel()).to(dtype)
    return whole[at:].view(shape)


def local(
    length: int = 40, parts: int = 2, batch: int = 1, dtype: torch.dtype = torch.bfloat16,
    at: int = 0, mask: torch.Tensor | None = None, turned: bool = False, **numbers: Any,
) -> Call:  # fmt: skip
    """Local attention of one token, in parts; with 0 of them in one piece."""
    query = made(batch, HEADS, 1, DIM, dtype=dtype, at=at)
    key, value = (made(batch, GROUPS, length, DIM, dtype=dtype) for _ in "kv")
    if turned:
        key = key.transpose(1, 2).contiguous().transpose(1, 2)
    shape = [*([parts] if parts else []), batch, HEADS, 1]
    out = torch.empty(*shape, DIM, dtype=torch.float32 if parts else dtype)
    run = attention_partials if parts else attention_with_lse
    lse = torch.empty(shape)
    return lambda: run(query, key, value, mask, out=out, lse=lse, **numbers)


def reading(
    entries: int = 4, parts: int = 2, at: int = 0, rotary: int = DIM, layers: int = 1,
    masked: bool = False, dtype: torch.dtype = torch.bfloat16, **numbers: Any,
) -> Call:  # fmt: skip
    """Blocks that are read where they are stored, maybe beside those of other layers."""
    query = made(1, HEADS, 1, DIM, dtype=dtype, at=at)
    stores = [made(SLOTS, layers * GROUPS, BLOCK, DIM, dtype=dtype)[:, :GROUPS] for _ in range(2)]
    created = torch.arange(SLOTS)
    table = torch.arange(entries)[None] % SLOTS
    shape = [*([parts] if parts else []), 1, HEADS, 1]
    attended = made(*shape, DIM, dtype=torch.float32 if parts else dtype), torch.randn(shape)
    turn = (torch.randn(1, 1, rotary), torch.randn(1, 1, rotary)) if rotary else None
    rest: dict[str, Any] = {
        "turn": turn,
        "query_mask": torch.ones(1, 1, dtype=torch.bool) if masked else None,
        "out": torch.empty(1, HEADS, 1, DIM, dtype=dtype),
        "gate": torch.empty(1, HEADS, 1),
        **numbers,
    }
    places = torch.arange(SLOTS * BLOCK).view(SLOTS, BLOCK)
    given = (*stores, table, created[table], created, places, torch.zeros(1), *attended)
    return lambda: reweave_paged(query, *given, **rest)


CASES: dict[str, Callable[[], Call]] = {
    "local": local,
    "local, other tensors": local,
    "a length that 16 divides": lambda: local(48),
    "one key": lambda: local(1),
    "not aligned": lambda: local(at=1),
    "other strides": lambda: local(turned=True),
    "two rows": lambda: local(batch=2),
    "float32": lambda: local(dtype=torch.float32),
    "a bool mask": lambda: local(mask=torch.ones(1, 1, 1, 40, dtype=torch.bool)),
    "a float mask": lambda: local(mask=torch.zeros(1, 1, 1, 40)),
    "a scale": lambda: local(scale=0.5),
    "a soft cap": lambda: local(softcap=5.0),
    "one part": lambda: local(parts=1),
    "in one piece": lambda: local(parts=0),
    "reading": reading,
    "reading, other tensors": reading,
    "one entry": lambda: reading(1),
    "16 entries": lambda: reading(16),
    "whole local attention": lambda: reading(parts=0),
    "reading, not aligned": lambda: reading(at=1),
    "beside two other layers": lambda: reading(layers=3),
    "not rotated": lambda: reading(rotary=0),
    "partly rotated": lambda: reading(rotary=8),
    "who may read": lambda: reading(masked=True),
    "reading, another scale": lambda: reading(scale=0.5),
}


class Driver:
    """Notes what it is to launch, and how often Triton was asked to bind arguments."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []
        self.bound = 0

    def start(self, compiled: Any, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        told = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
        self.launched.append((compiled, grid, told))

    def bind(self, *launch: Any) -> None:
        self.bound += 1
        _launch.run(*launch)

    def of(self, call: Call) -> list[tuple[Any, ...]]:
        self.launched = []
        call()
        return self.launched


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    monkeypatch.setattr(_launch, "launcher", driver.bind)
    with torch.no_grad(), starting("sm_90", driver.start):
        yield driver


def test_launches_are_those_that_triton_would_make(driver: Driver) -> None:
    """Whatever was launched in between: for each case the same kernel, grid and arguments."""
    calls = {name: case() for name, case in CASES.items()}
    wanted = {}
    for name, call in calls.items():
        again.forget()
        wanted[name] = driver.of(call)
        assert len(wanted[name]) == 1, name
    kernels = {name: launch[0][0] for name, launch in wanted.items()}
    assert len(set(kernels.values())) > len(CASES) / 2, "cases that say little"
    again.forget()
    bound = driver.bound
    for _ in range(2):
        for name, call in calls.items():
            assert driver.of(call) == wanted[name], name
    # The others have tensors of a layout that was launched already.
    assert driver.bound - bound == len(CASES) - sum("other tensors" in name for name in CASES)


def test_what_does_not_fit_is_refused_as_before(driver: Driver) -> None:
    query, key = made(1, HEADS, 1, DIM), made(1, GROUPS, 40, DIM)
    out, lse = torch.empty(2, 1, HEADS, 1, DIM), torch.empty(2, 1, HEADS, 1)
    attention_partials(query, key, key, out=out, lse=lse)
    attention_partials(query, key, key, out=out, lse=lse)
    assert driver.bound == 1 and len(driver.launched) == 2
    for wrong, error in (
        ((query, key, key[..., :39, :]), ValueError),
        ((query, key.half(), key), TypeError),
        ((query, key, key, torch.ones(3, dtype=torch.bool)), ValueError),
        ((query, key.to_sparse(), key), (TypeError, ValueError, RuntimeError)),
        ((query, [key], key), TypeError),
    ):
        with pytest.raises(error):
            attention_partials(*wrong, out=out, lse=lse)
    with pytest.raises(ValueError, match="lse"):
        attention_partials(query, key, key, out=out, lse=lse[:1])
    with pytest.raises(ValueError, match="softcap"):
        attention_partials(query, key, key, softcap=-1.0, out=out, lse=lse)
    assert len(driver.launched) == 2


def test_a_number_is_that_of_the_call(driver: Driver) -> None:
    """One that a tensor holds may be another one each time."""
    query, key = made(1, HEADS, 1, DIM), made(1, GROUPS, 40, DIM)
    out, lse = torch.empty(2, 1, HEADS, 1, DIM), torch.empty(2, 1, HEADS, 1)
    scale: Any = torch.tensor(0.25)
    for value in (0.25, 0.25, 0.5):
        scale.fill_(value)
        (launch,) = driver.of(
            lambda: attention_partials(query, key, key, scale=scale, out=out, lse=lse)
        )
        assert value in launch[2]


def test_only_plain_tensors_go_the_short_way(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modes see the operation, ranges stand around it, and another implementation is heeded."""
    query, key = made(1, HEADS, 1, DIM), made(1, GROUPS, 40, DIM)
    out, lse = torch.zeros(2, 1, HEADS, 1, DIM), torch.zeros(2, 1, HEADS, 1)

    def call() -> None:
        attention_partials(query, key, key, out=out, lse=lse)

    call()
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Mode():
        call()
    assert "cmr::attention_partials" in seen
    names: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            names.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(ranges, "annotate", Range)
        call()
    assert names == ["cmr.reweave"]
    with torch.enable_grad(), pytest.raises(ValueError, match="gradient"):
        attention_partials(query.requires_grad_(), key, key, out=out, lse=lse)
    query.requires_grad_(False)
    launched = len(driver.launched)
    with using("reference"):
        call()
    assert len(driver.launched) == launched and bool(out.any()), "computed by the specification"


def test_few_are_kept(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "MOST", 2)
    for length in (40, 41, 42, 43, 40):
        driver.of(local(length))
    assert 1 <= max(map(len, again._all)) <= 2


def test_a_cpu_launches_nothing_again() -> None:
    with torch.no_grad():
        local()()
        reading()()
    assert not any(again._all)
