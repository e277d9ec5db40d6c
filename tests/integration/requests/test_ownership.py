"""What belongs to a request is held by the request and its cache, and by nothing that is shared."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.hooks.step import Step
from cmr.integration.requests.request import current
from cmr.memory.sessions import SessionTable
from cmr.retrieval import Retriever
from tests.integration.tiny import text

WHO = "anna, of whom nobody else may know"
BLOCKS = 37
"""A setting that no other request has."""
SHARED = (types.ModuleType, type, types.BuiltinFunctionType, types.FrameType)


def reached(start: list[Any], without: tuple[type, ...]) -> dict[int, Any]:
    """All objects that something holds, directly or not, by their identity.

    Modules, classes and what a function finds by name are everybody's, and are passed over; so are
    objects of the given types.
    """
    seen: dict[int, Any] = {}
    waiting = list(start)
    while waiting:
        at = waiting.pop()
        if id(at) in seen or isinstance(at, SHARED):
            continue
        seen[id(at)] = at
        if isinstance(at, without):
            continue
        if isinstance(at, types.FunctionType):
            waiting += [at.__closure__, at.__defaults__, at.__kwdefaults__, at.__dict__]
        elif not isinstance(at, torch.Tensor):
            waiting += gc.get_referents(at)
    return seen


def names(found: dict[int, Any]) -> list[Any]:
    return [at for at in found.values() if isinstance(at, str) and WHO in at]


def settings(found: dict[int, Any]) -> list[Any]:
    return [
        at for at in found.values() if isinstance(at, cmr.RetrievalConfig) and at.blocks == BLOCKS
    ]


def by_with(memory: cmr.Memory, model: Any, ids: torch.Tensor) -> None:
    with memory.session(WHO), memory.retrieval(blocks=BLOCKS):
        model.generate(ids, max_new_tokens=20, do_sample=False)


def by_handle(memory: cmr.Memory, model: Any, ids: torch.Tensor) -> None:
    session = memory.session(WHO)
    with memory.retrieval(blocks=BLOCKS):
        session.generate(ids, max_new_tokens=20, do_sample=False)


def by_forward(memory: cmr.Memory, model: Any, ids: torch.Tensor) -> None:
    session = memory.session(WHO)
    with memory.retrieval(blocks=BLOCKS):
        cache = session.forward(ids, use_cache=True).past_key_values
        session.forward(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("how", [by_with, by_handle, by_forward])
@pytest.mark.parametrize("strategy", ["maxsim", "hybrid_ensemble"])
def test_nothing_shared_names_a_session_or_a_setting_of_a_request(
    llama: nn.Module, how: Callable[..., None], strategy: str
) -> None:
    looked: list[dict[str, Any]] = []
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0, strategy=strategy) as memory:
        memory.read(text(300), sessions=[WHO])

        def look(*_: Any) -> None:
            found = reached([llama, memory], without=(SessionTable, WindowRecord))
            request = current(memory._core)
            held = [] if request is None else [request]
            own = reached(held, without=(SessionTable, nn.Module, cmr.Memory, Retriever))
            retriever = None if request is None else request.retriever
            looked.append(
                {
                    "shared": (names(found), settings(found)),
                    "own": (bool(names(own)), retriever and retriever.config.blocks),
                    "step": any(isinstance(at, Step) and at.recall for at in found.values()),
                    "table": bool(names(reached([memory._core.table], ()))),
                }
            )

        last: Any = llama.model.layers[-1]
        handle = last.register_forward_pre_hook(look)
        how(memory, llama, text(1, 80, seed=3) if how is not by_forward else text(1, 20, seed=3))
        handle.remove()
        after = reached([llama, memory], without=(SessionTable,))
        assert not names(after) and not settings(after)
    assert len(looked) > 1
    for seen in looked:
        assert seen["shared"] == ([], [])
        assert seen["table"]
        assert how is by_forward or seen["own"] == (True, BLOCKS)
    assert any(seen["step"] for seen in looked), "no forward under way was among what was looked at"
