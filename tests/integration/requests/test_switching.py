"""A request ends as it began, whatever others switch meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from tests.integration.tiny import text

ASKED = text(1, 20, seed=4)


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0, refresh=1, blocks=1) as memory:
        memory.read(text(300), sessions=["anna"])
        yield memory


class Between:
    """Does something behind the first new token of a `generate`."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act, self._count = act, 0

    def put(self, _: torch.Tensor) -> None:
        self._count += 1
        if self._count == 3:  # the prompt, a token, and now
            self._act()

    def end(self) -> None:
        return None


def switches(memory: cmr.Memory) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """What others may do, and how it is undone."""
    return {
        "pause": (memory.pause, memory.resume),
        "change": (lambda: memory.change(blocks=4, gain=0.0), lambda: memory.change(blocks=1)),
        "scoring": (
            lambda: memory.change(scoring_method="variance_based"),
            lambda: memory.change(relevance_threshold=None),
        ),
    }


@pytest.mark.parametrize("what", ["pause", "change", "scoring"])
@pytest.mark.parametrize("where", ["here", "another thread"])
def test_a_generation_under_way_ends_as_it_began(memory: cmr.Memory, what: str, where: str) -> None:
    anna = memory.session("anna")
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    want = anna.generate(ASKED, **options)
    act, undo = switches(memory)[what]

    def elsewhere() -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()

    between = Between(act if where == "here" else elsewhere)
    assert torch.equal(anna.generate(ASKED, **options, streamer=between), want)
    if what != "scoring":
        assert not torch.equal(anna.generate(ASKED, **options), want), "it switched nothing"
    undo()


def test_beside_switches_every_answer_is_one_of_those_that_are_switched_between(
    memory: cmr.Memory, llama: nn.Module
) -> None:
    anna = memory.session("anna")
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}

    def ask() -> tuple[int, ...]:
        return tuple(anna.generate(ASKED, **options)[0].tolist())

    one = ask()
    memory.change(blocks=4, gain=0.0)
    other = ask()
    memory.change(blocks=1)
    with memory.paused():
        plain = ask()
    allowed = {one, other, plain}
    assert len(allowed) == 3
    stop, found, errors = threading.Event(), set[tuple[int, ...]](), list[BaseException]()

    def switch() -> None:
        while not stop.is_set():
            for act in (memory.pause, memory.resume, lambda: memory.change(blocks=4),
                        lambda: memory.change(blocks=1)):  # fmt: skip
                act()
                stop.wait(0.02)

    def work() -> None:
        try:
            found.update(ask() for _ in range(12))
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    switcher = threading.Thread(target=switch)
    for thread in (switcher, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    switcher.join()
    assert not errors and found <= allowed and len(found) > 1


def test_a_read_under_way_is_scored_as_it_began(memory: cmr.Memory) -> None:
    """Another scorer may want layers that did not run for the pieces before."""
    done: list[int] = []

    def switch(tokens: int, _: int) -> None:
        done.append(tokens)
        memory.change(relevance_threshold=0.0 if len(done) % 2 else None)

    anna = memory.session("anna")
    report = anna.read(text(200, seed=7), progress=switch)
    assert report.tokens == 200 and len(done) > 2 and anna.tokens == 500
    relevance = {block.relevance for block in anna.inspect(start=300)}
    assert relevance == {0.5}, "scored, though nothing was to be when it began"


def test_settings_that_are_said_for_a_step_hold_for_it_at_once(llama: nn.Module) -> None:
    """A text that goes on searches anew where the settings of its search are others."""
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0, blocks=1) as memory:
        memory.read(text(300), sessions=["anna"])
        anna, token = memory.session("anna"), ASKED[:, :1]
        cache = anna.forward(ASKED, use_cache=True).past_key_values
        passages = [len(anna.recalled[0])]
        for blocks in (4, None, 0, None):
            if blocks is None:
                anna.forward(token, past_key_values=cache)
            else:
                with memory.retrieval(blocks=blocks, gain=0.0, neighbours=0):
                    anna.forward(token, past_key_values=cache)
            passages.append(len(anna.recalled[0]))
        assert passages == [1, 4, 1, 0, 1]
