"""Whatever raises, wherever: the model works afterwards, and others get their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.integration.decoder.wrapped import hooked
from cmr.integration.requests import scope
from tests.integration.tiny import greedy, text

ASKED = text(1, 20, seed=4)


class _StopError(Exception):
    pass


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0) as memory:
        memory.read(text(300), sessions=["anna"])
        yield memory


def failing(error: type[BaseException]) -> Any:
    def hook(*_: Any, **__: Any) -> None:
        raise error

    return hook


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["layer", "decoder, behind ours", "decoder, before ours", "head"])
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_an_error_in_a_forward_leaves_a_working_model(
    memory: cmr.Memory, llama: nn.Module, error: type[BaseException], where: str, how: str
) -> None:
    anna = memory.session("anna")
    run = anna.forward if how == "forward" else anna.generate
    given = {} if how == "forward" else {"max_new_tokens": 3, "do_sample": False}
    want = anna.forward(ASKED).logits, anna.generate(ASKED, max_new_tokens=3, do_sample=False)
    memory.pause()
    plain = llama(ASKED).logits
    memory.resume()
    module: Any = {"layer": llama.model.layers[3], "head": llama.lm_head}.get(where, llama.model)

    def stop(*_: Any) -> None:
        if not memory._stepper.busy:  # not where a search looks ahead
            raise error

    handle = module.register_forward_pre_hook(stop, prepend=where == "decoder, before ours")
    with pytest.raises(error):
        run(ASKED, **given)
    handle.remove()
    freed: list[bool] = []
    # Where an interrupt comes before the decoder's own forward, this thread's next one ends it.
    if not (where == "decoder, behind ours" and error is not _StopError):
        other = threading.Thread(target=lambda: freed.append(memory._core.lock.acquire(1.0)))
        other.start()
        other.join()
        assert freed == [True], "the lock was kept"
        memory._core.lock._owner = None  # that thread is gone
    assert torch.equal(anna.forward(ASKED).logits, want[0])
    assert torch.equal(anna.generate(ASKED, max_new_tokens=3, do_sample=False), want[1])
    assert not memory._core.lock.mine
    memory.pause()
    assert torch.equal(llama(ASKED).logits, plain)
    memory.detach()
    assert torch.equal(llama(ASKED).logits, plain)


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt])
def test_an_error_while_memory_is_asked_leaves_a_working_model(
    memory: cmr.Memory, error: type[BaseException], monkeypatch: Any
) -> None:
    anna, ben = memory.session("anna"), memory.session("ben", create=True)
    memory._core.failures.strict = True  # else the model answers, see test_failures.py
    want = anna.forward(ASKED).logits
    for owner, name, run in (
        (memory._core, "recall", lambda: anna.forward(ASKED)),
        (memory._core, "search", lambda: anna.generate(ASKED, max_new_tokens=1)),
        (memory._core.writer, "write", lambda: ben.generate(text(1, 200), max_new_tokens=1)),
        (memory._core.writer, "write", lambda: ben.read(text(1, 200))),
        (memory._core.table, "find", lambda: anna.forward(ASKED)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing(error))
            with pytest.raises(error):
                run()
        assert not memory._core.lock.mine
        assert torch.equal(anna.forward(ASKED).logits, want)


@pytest.mark.parametrize("error", [_StopError, KeyboardInterrupt])
def test_an_error_while_reading_leaves_what_was_read(
    memory: cmr.Memory, llama: nn.Module, error: type[BaseException]
) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 64:
            raise error

    with pytest.raises(error):
        memory.session("ben", create=True).read(text(300, seed=2), progress=stop)
    assert 64 <= memory.session("ben").tokens < 300
    assert not memory._core.lock.mine
    memory.session("ben").read(text(100, seed=3))
    assert memory.session("ben").generate(ASKED, max_new_tokens=2).shape == (1, 22)


def test_a_model_that_a_hook_runs_again_inside_a_forward(
    memory: cmr.Memory, llama: nn.Module
) -> None:
    """Not an interrupted forward: the outer one goes on as it began."""
    anna = memory.session("anna")
    want = anna.forward(ASKED).logits
    inner: list[torch.Tensor] = []

    def again(*_: Any) -> None:
        if not inner:
            inner.append(torch.empty(0))
            inner[0] = llama(ASKED).logits

    last = llama.model.layers[5]  # behind those that a search runs ahead
    handle = last.register_forward_pre_hook(again)
    have = anna.forward(ASKED).logits
    handle.remove()
    assert torch.equal(have, want) and torch.equal(inner[0], want)
    assert not memory._core.lock.mine


def test_a_model_that_rests_inside_a_forward_that_remembers(
    memory: cmr.Memory, llama: nn.Module
) -> None:
    """The inner forward sees nothing of the outer one, and leaves nothing in it."""
    anna = memory.session("anna")
    want = anna.forward(ASKED).logits
    with memory.paused():
        plain = llama(text(1, 30, seed=9)).logits
    inner: list[torch.Tensor] = []

    def again(*_: Any) -> None:
        if not inner:
            with memory.paused():
                inner.append(torch.empty(0))
                inner[0] = llama(text(1, 30, seed=9)).logits

    last: Any = llama.model.layers[5]
    handle = last.register_forward_pre_hook(again)
    have = anna.forward(ASKED).logits
    handle.remove()
    assert torch.equal(inner[0], plain) and torch.equal(have, want)


def test_hooks_of_a_pass_that_was_torn_away_are_gone_with_the_next_call(
    memory: cmr.Memory, llama: nn.Module
) -> None:
    """An interrupt may come while they are being taken away: nobody does that a second time."""
    ids = text(1, 20)
    plain = llama(ids).logits
    adapter = memory._core.adapter
    before = [dict(layer._forward_pre_hooks) for layer in adapter.layers]
    for layer in adapter.layers[1:3]:
        with ExitStack() as torn:
            hooked(torn, layer, failing(_StopError), with_kwargs=True, noted=adapter.hooks)
            torn.pop_all()
    assert len(adapter.hooks) == 2
    with memory.paused():
        assert torch.equal(llama(ids).logits, plain)
    assert adapter.hooks == []
    assert [dict(layer._forward_pre_hooks) for layer in adapter.layers] == before


def test_detached_inside_a_forward(memory: cmr.Memory, llama: nn.Module) -> None:
    last: Any = llama.model.layers[5]
    handle = last.register_forward_pre_hook(lambda *_: memory.detach())
    memory.session("anna").forward(ASKED)
    handle.remove()
    assert not memory.attached and not memory._core.lock.mine
    llama(ASKED)


def test_detached_by_another_thread_while_generating(memory: cmr.Memory, llama: nn.Module) -> None:
    want = None
    begun, gone = threading.Event(), threading.Event()

    class Wait:
        def put(self, value: torch.Tensor) -> None:
            begun.set()
            gone.wait(10)

        def end(self) -> None:
            return None

    def detach() -> None:
        begun.wait(10)
        memory.detach()
        gone.set()

    other = threading.Thread(target=detach)
    other.start()
    anna = memory.session("anna")
    answer = anna.generate(ASKED, max_new_tokens=6, do_sample=False, streamer=Wait())
    other.join()
    assert answer.shape == (1, 26)
    want = greedy(llama, ASKED)
    assert torch.equal(want, greedy(llama, ASKED))


def test_detached_while_reading_is_an_error(memory: cmr.Memory) -> None:
    with pytest.raises(cmr.AttachError, match="while a text was read"):
        memory.session("anna").read(text(400), progress=lambda *_: memory.detach())


def test_a_session_that_ends_while_it_is_read_is_an_error(memory: cmr.Memory) -> None:
    with pytest.raises(cmr.UnknownSessionError, match="ended while a text was read"):
        memory.session("anna").read(text(400), progress=lambda *_: memory.forget("anna"))
    assert memory.tokens == 0


def test_a_call_that_was_interrupted_at_its_very_end_names_nobody(
    memory: cmr.Memory, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scope, "_close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory.session("anna").forward(ASKED)
    monkeypatch.undo()
    assert memory.named is None
    llama(ASKED, use_cache=False)
    assert memory.recalled == [[]]
