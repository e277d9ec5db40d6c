"""Model classes around the shared tiny decoders: each is cleaned up behind its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from cmr.integration.models.memory_model import MemoryModel


@pytest.fixture
def made() -> Iterator[Callable[..., Any]]:
    """Makes a model class; its hooks go with the test, as the decoder is shared."""
    kept: list[MemoryModel] = []

    def make(kind: type[Any], decoder: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(kind(decoder, *args, **kwargs))
        return kept[-1]

    yield make
    for model in kept:
        model.cleanup_hooks()


@pytest.fixture(params=["llama", "mistral", "gemma2", "gpt2"])
def decoder(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny(request.param)
