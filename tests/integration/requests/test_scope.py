"""Who asks is told by what surrounds a request, or refused where that cannot be told."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import ConfigError, SessionError, UnknownSessionError
from tests.integration.tiny import text

NAMES = ("anna", "ben")
ASKED = text(1, 20, seed=4)


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0) as memory:
        for name in NAMES:
            memory.read(text(300, seed=len(name)), sessions=[name])
        yield memory


@pytest.fixture
def ask(memory: cmr.Memory, llama: nn.Module) -> Callable[[], set[str]]:
    """Runs a forward; gives the sessions that it read."""

    def run() -> set[str]:
        with torch.no_grad():
            llama(ASKED)
        return readers(memory.recalled)

    return run


def readers(recalled: list[list[Any]]) -> set[str]:
    return {passage.session for row in recalled for passage in row}


Ask = Callable[[], set[str]]


# -- generators ----------------------------------------------------------------------------------


def test_generators_that_take_turns_are_refused_and_never_mixed(
    memory: cmr.Memory, ask: Ask
) -> None:
    def stream(name: str) -> Iterator[set[str]]:
        with memory.session(name):
            while True:
                yield ask()

    anna, ben = stream("anna"), stream("ben")
    assert next(anna) == {"anna"}
    assert next(ben) == {"ben"}
    with pytest.raises(SessionError, match=r"memory\.session\('ben'\).*stream\(\).*handle"):
        next(anna)
    assert next(ben) == {"ben"}
    with pytest.raises(SessionError, match="ben"):
        ask()  # of nobody, while the generator rests
    ben.close()
    assert ask() == set()


def test_generators_that_take_turns_work_with_handles(memory: cmr.Memory) -> None:
    def stream(name: str) -> Iterator[set[str]]:
        session = memory.session(name)
        with memory.retrieval(blocks=1):  # a setting, which rests while others run
            for _ in range(3):
                session.forward(ASKED)
                yield readers(session.recalled)

    streams = {name: stream(name) for name in NAMES}
    for _ in range(3):
        for name in NAMES:
            assert next(streams[name]) == {name}


def test_a_generator_driven_in_other_contexts_keeps_its_session(
    memory: cmr.Memory, ask: Ask
) -> None:
    """As web frameworks drive the generator of a streamed answer: each piece in a fresh context."""

    def stream(name: str) -> Iterator[set[str]]:
        with memory.session(name):
            for _ in range(3):
                yield ask()

    for name in NAMES:
        answer = stream(name)
        found = [contextvars.copy_context().run(next, answer) for _ in range(3)]
        assert found == [{name}] * 3
        with pytest.raises(StopIteration):
            contextvars.copy_context().run(next, answer)
    assert ask() == set()


def test_a_dependency_that_is_entered_in_another_context_is_not_overlooked(
    memory: cmr.Memory, ask: Ask
) -> None:
    """As web frameworks enter what a handler depends on: its `with` does not reach the handler."""

    def depends(name: str) -> Iterator[cmr.Session]:
        with memory.session(name) as session:
            yield session

    entered = depends("anna")
    session = contextvars.copy_context().run(next, entered)
    with pytest.raises(SessionError, match=r"memory\.session\('anna'\) rests"):
        ask()
    session.forward(ASKED)
    assert readers(session.recalled) == {"anna"}
    with memory.session("ben"):
        assert ask() == {"ben"}
    with pytest.raises(StopIteration):
        contextvars.copy_context().run(next, entered)
    assert ask() == set()


def test_a_generator_that_is_dropped_leaves_nothing(memory: cmr.Memory, ask: Ask) -> None:
    def stream() -> Iterator[set[str]]:
        with memory.session("anna"):
            yield ask()

    answer = stream()
    assert next(answer) == {"anna"}
    del answer
    assert ask() == set()


def test_a_paused_generator_does_not_pause_others(memory: cmr.Memory, ask: Ask) -> None:
    def resting() -> Iterator[None]:
        with memory.paused():
            yield

    rests = resting()
    next(rests)
    with pytest.raises(SessionError, match=r"memory\.paused\(\)"):
        ask()
    ben = memory.session("ben")
    ben.forward(ASKED)  # a handle says by itself whose request it is, and what rests says nothing
    assert readers(ben.recalled) == {"ben"}
    rests.close()
    assert ask() == set()


# -- helpers that open a `with` ------------------------------------------------------------------


def test_a_helper_of_contextlib_speaks_for_who_uses_it(memory: cmr.Memory, ask: Ask) -> None:
    @contextlib.contextmanager
    def user(name: str) -> Iterator[None]:
        with memory.session(name), contextlib.ExitStack() as stack:
            stack.enter_context(memory.retrieval(blocks=1))
            yield

    with user("anna"):
        assert ask() == {"anna"}
        with user("ben"):
            assert ask() == {"ben"}
        assert ask() == {"anna"}

    def stream(name: str) -> Iterator[set[str]]:
        with user(name):
            while True:
                yield ask()

    anna, ben = stream("anna"), stream("ben")
    assert (next(anna), next(ben)) == ({"anna"}, {"ben"})
    with pytest.raises(SessionError):
        next(anna)
    ben.close()


def test_a_with_that_a_function_left_open_holds_until_it_is_left(
    memory: cmr.Memory, ask: Ask
) -> None:
    stack = contextlib.ExitStack()

    def set_up() -> None:
        stack.enter_context(memory.session("anna"))

    set_up()
    assert ask() == {"anna"}
    stack.close()
    assert ask() == set()


def test_leaving_out_of_order_is_an_error_and_leaves_nothing(memory: cmr.Memory, ask: Ask) -> None:
    anna, ben = memory.session("anna"), memory.session("ben")
    anna.__enter__()
    ben.__enter__()
    with pytest.raises(SessionError, match=r"session\('anna'\).*session\('ben'\).*handle"):
        anna.__exit__(None, None, None)
    assert ask() == {"ben"}
    ben.__exit__(None, None, None)
    assert ask() == set()


def test_an_error_inside_is_not_replaced_by_the_one_of_leaving(memory: cmr.Memory) -> None:
    outer = memory.session("anna")
    inner = memory.session("ben")
    with pytest.raises(RuntimeError, match="mine"), outer:
        inner.__enter__()
        raise RuntimeError("mine")
    inner.__exit__(None, None, None)


def test_leaving_in_another_thread_is_an_error(memory: cmr.Memory) -> None:
    raised: list[BaseException] = []
    session = memory.session("anna")
    session.__enter__()

    def leave() -> None:
        try:
            session.__exit__(None, None, None)
        except SessionError as error:
            raised.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert "another context" in str(raised[0])
    session.__exit__(None, None, None)


# -- tasks and threads ---------------------------------------------------------------------------


def test_tasks_do_not_see_each_others_sessions(memory: cmr.Memory, ask: Ask) -> None:
    async def handler(name: str) -> list[set[str]]:
        found = []
        with memory.session(name):
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(ask())
                found.append(await asyncio.to_thread(ask))
                found.append(await asyncio.create_task(child()))
        return found

    async def child() -> set[str]:
        await asyncio.sleep(0)
        return ask()

    async def everybody() -> list[list[set[str]]]:
        return await asyncio.gather(*(handler(name) for name in NAMES))

    assert asyncio.run(everybody()) == [[{name}] * 9 for name in NAMES]


def test_async_generators_that_take_turns_are_refused(memory: cmr.Memory, ask: Ask) -> None:
    async def stream(name: str) -> AsyncIterator[set[str]]:
        with memory.session(name):
            while True:
                yield ask()

    async def turns() -> None:
        anna, ben = stream("anna"), stream("ben")
        assert await anext(anna) == {"anna"}
        assert await anext(ben) == {"ben"}
        with pytest.raises(SessionError):
            await anext(anna)
        await ben.aclose()

    asyncio.run(turns())


def test_a_thread_takes_over_no_with(memory: cmr.Memory, ask: Ask) -> None:
    """The usual way to stream: `generate` in a thread of its own, which has no session."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(ask())
        except SessionError as error:
            found.append(str(error))

    with memory.session("anna"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        copied = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        copied.start()
        copied.join()
    assert "do not take over" in found[0] and "handle" in found[0]
    assert found[1] == {"anna"}


def test_threads_that_name_nobody_are_rows_where_nobody_is_named(llama: nn.Module) -> None:
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0) as memory:
        memory.read(text(300))
        found: list[set[str]] = []

        def work() -> None:
            with torch.no_grad():
                llama(ASKED)
            found.append(readers(memory.recalled))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [{"0"}]
        assert memory.recalled == []  # of this thread, which ran no forward


# -- unnamed, ended, foreign ---------------------------------------------------------------------


def test_servers_refuse_requests_of_nobody(llama: nn.Module) -> None:
    with cmr.attach(llama, window=64, unnamed="refuse") as memory:
        for run in (lambda: llama(ASKED), lambda: llama.generate(ASKED, max_new_tokens=2)):
            with pytest.raises(SessionError, match="unnamed='refuse'"):
                run()
        with pytest.raises(SessionError):
            memory.read(ASKED)
        assert memory.sessions == []
        memory.read(ASKED, sessions=["anna"])
        memory.session("anna").generate(ASKED, max_new_tokens=2)
        with memory.paused():
            llama(ASKED)
        memory.pause()
        llama(ASKED)
    with pytest.raises(ConfigError, match="'row', 'refuse'"):
        cmr.attach(llama, unnamed="rows")


def test_a_session_that_has_ended_is_not_made_anew(memory: cmr.Memory, ask: Ask) -> None:
    anna = memory.session("anna")
    with anna:
        assert ask() == {"anna"}
        memory.forget("anna")
        with pytest.raises(UnknownSessionError, match="anna"):
            ask()
        with pytest.raises(UnknownSessionError):
            memory.read(text(40))
    with pytest.raises(UnknownSessionError):
        anna.generate(ASKED, max_new_tokens=1)
    guest = memory.session("guest", create=True, ephemeral=True)
    memory.forget("guest")
    guest.read(text(40))  # who may make it makes it as it was: ephemeral
    with pytest.raises(ValueError, match="ephemeral"):
        memory.session("guest", ephemeral=False)


def test_a_cache_of_another_session_is_refused(memory: cmr.Memory, llama: nn.Module) -> None:
    cache = memory.session("anna").forward(ASKED, use_cache=True).past_key_values
    with pytest.raises(SessionError, match=r"'ben'.*'anna'"):
        memory.session("ben").forward(ASKED[:, :1], past_key_values=cache)
    step = memory.session("anna").forward(ASKED[:, :1], past_key_values=cache)
    assert step.logits.isfinite().all()
    with torch.no_grad():  # a cache knows whose it is
        llama(ASKED[:, :1], past_key_values=cache)
    assert readers(memory.recalled) == {"anna"}


def test_settings_of_a_request_and_changes_for_good_do_not_undo_each_other(
    memory: cmr.Memory, ask: Ask
) -> None:
    session = memory.session("anna")
    with memory.retrieval(blocks=1):
        memory.change(neighbours=0, blocks=4)
        session.forward(ASKED)
        assert len(session.recalled[0]) == 1
        with memory.retrieval(blocks=0):
            session.forward(ASKED)
            assert session.recalled == [[]]
        found = memory._core.retriever.config
        assert (found.blocks, found.neighbours) == (1, 0)
    assert memory.config.retrieval.blocks == memory._core.retriever.config.blocks == 4
    assert memory._core.retriever.config.neighbours == 0
