"""Tiny random decoders, shared by all tests of the integration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import FAMILIES, build


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], nn.Module]:
    """Builds the named decoder, once for all tests: whoever attaches to it detaches again."""
    built: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in built:
            built[name] = build(name)
        return built[name]

    return get


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny(request.param)


@pytest.fixture
def llama(tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny("llama")


@pytest.fixture(autouse=True)
def all_detached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A memory that a failing test leaves attached must not fail the tests behind it."""
    made: WeakSet[cmr.Memory] = WeakSet()
    begin = cmr.Memory.__init__

    def note(self: cmr.Memory, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.add(self)

    monkeypatch.setattr(cmr.Memory, "__init__", note)
    with torch.no_grad():
        yield
    for memory in list(made):
        memory.detach()
