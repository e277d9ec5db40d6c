"""A handle says by itself whose memory is read and written."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import AttachError, ConfigError, UnknownSessionError
from tests.integration.tiny import greedy, padded, text

ASKED = text(1, 20, seed=4)


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, window=64, block_size=8, threshold=0.0) as memory:
        for name in ("anna", "ben"):
            memory.read(text(300, seed=len(name)), sessions=[name])
        yield memory


def readers(recalled: list[list[Any]]) -> list[set[str]]:
    return [{passage.session for passage in row} for row in recalled]


def test_a_handle_does_what_its_with_does(memory: cmr.Memory, llama: nn.Module) -> None:
    anna = memory.session("anna")
    with anna as inside:
        assert inside is anna
        want = greedy(llama, ASKED), llama(ASKED).logits, memory.recalled
    have = anna.generate(ASKED, max_new_tokens=12, do_sample=False)[:, 20:]
    assert torch.equal(have, want[0])
    assert torch.equal(anna.forward(ASKED).logits, want[1])
    assert anna.recalled == want[2] == memory.recalled and readers(anna.recalled) == [{"anna"}]
    assert torch.equal(anna.generate(inputs=ASKED, max_new_tokens=1)[:, :20], ASKED)
    assert memory.session("ben").recalled == []


def test_a_handle_says_so_inside_another_sessions_with(memory: cmr.Memory) -> None:
    anna, ben = memory.session("anna"), memory.session("ben")
    with ben:
        anna.forward(ASKED)
        assert readers(memory.recalled) == [{"anna"}]
        assert memory.named == ("ben",)
        report = anna.read(text(40, seed=9))
    assert report.tokens == 40 and (anna.tokens, ben.tokens) == (340, 300)


def test_a_handle_of_a_batch(memory: cmr.Memory) -> None:
    both = memory.session("ben", "anna")
    both.forward(**padded([text(20, seed=4), text(12, seed=5)], "left"))
    assert readers(both.recalled) == [{"ben"}, {"anna"}]
    assert both.tokens == 600
    with pytest.raises(ValueError, match="2 session names for a batch of 3 rows"):
        both.forward(text(3, 20))
    for method, given in (("inspect", ()), ("forget", ()), ("search", ([3, 4, 5],))):
        with pytest.raises(ValueError, match=f"{method}: a handle of one session"):
            getattr(both, method)(*given)


def test_a_handle_looks_and_forgets(memory: cmr.Memory) -> None:
    anna = memory.session("anna")
    blocks = anna.inspect(limit=3)
    assert {block.session for block in blocks} == {"anna"} and len(blocks) == 3
    assert anna.forget(ids=blocks[0].id).blocks == 1
    anna.forward(ASKED)
    assert anna.recalled != [[]]
    report = anna.forget()
    assert report.sessions == ("anna",) and memory.sessions == ["ben"]
    assert anna.recalled == []
    with pytest.raises(UnknownSessionError):
        anna.inspect()


def test_what_one_thread_recalls_another_does_not_see(memory: cmr.Memory) -> None:
    anna, ben = memory.session("anna"), memory.session("ben")
    anna.forward(ASKED)
    seen: list[Any] = []

    def work() -> None:
        seen.append(memory.recalled)
        ben.forward(ASKED)
        seen.append(readers(memory.recalled))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[], [{"ben"}]]
    assert readers(memory.recalled) == readers(anna.recalled) == [{"anna"}]
    assert readers(ben.recalled) == [{"ben"}]
    memory.forget("anna")
    assert memory.recalled == anna.recalled == []
    assert readers(ben.recalled) == [{"ben"}]


def test_a_context_that_is_copied_does_not_show_what_others_recalled(memory: cmr.Memory) -> None:
    """Tasks and threads start with a copy of a context, and not with its last forward."""
    memory.session("anna").forward(ASKED)
    seen: list[Any] = []
    copied = contextvars.copy_context()
    thread = threading.Thread(target=copied.run, args=(lambda: seen.append(memory.recalled),))
    thread.start()
    thread.join()

    async def task() -> None:
        seen.append(memory.recalled)

    asyncio.run(task())
    assert seen == [[], []] and readers(memory.recalled) == [{"anna"}]


class Within:
    """A streamer that does something behind the first new token."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act, self.count = act, 0

    def put(self, _: torch.Tensor) -> None:
        self.count += 1
        if self.count == 2:
            self._act()

    def end(self) -> None:
        return None


def test_somebody_elses_request_inside_a_generation_is_theirs(
    memory: cmr.Memory, llama: nn.Module
) -> None:
    anna, ben = memory.session("anna"), memory.session("ben")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
    want = anna.generate(ASKED, **options), ben.generate(ASKED, **options)
    assert not torch.equal(*want)
    found: list[Any] = []

    def by_handle() -> None:
        found.append(ben.generate(ASKED, **options))
        ben.forward(ASKED)
        found.append(readers(ben.recalled))

    def by_with() -> None:
        with memory.session("ben"):
            found.append(llama.generate(ASKED, **options))
            llama(ASKED)
            found.append(readers(memory.recalled))

    def of_the_same() -> None:  # nothing else is said: it belongs to the generation around it
        found.append(llama.generate(ASKED, **options))
        llama(ASKED)
        found.append(readers(memory.recalled))

    for act, whose in ((by_handle, "ben"), (by_with, "ben"), (of_the_same, "anna")):
        found.clear()
        assert torch.equal(anna.generate(ASKED, **options, streamer=Within(act)), want[0])
        assert torch.equal(found[0], want[whose == "ben"]) and found[1] == [{whose}]


def test_a_session_that_ends_between_a_request_and_its_forward_is_not_made_anew(
    memory: cmr.Memory, llama: nn.Module
) -> None:
    anna = memory.session("anna")

    def forget(*_: Any) -> None:
        if "anna" in memory.sessions:
            memory.forget("anna")

    handle = llama.register_forward_pre_hook(forget)
    answer = anna.generate(text(1, 200), max_new_tokens=90, do_sample=False)
    assert answer.shape == (1, 290)
    assert memory.sessions == ["ben"] and memory.tokens == 300
    memory.read(text(40), sessions=["anna"])
    embedded = llama.get_input_embeddings()(text(1, 200))  # a prompt that is run in one piece
    answer = anna.generate(inputs_embeds=embedded, max_new_tokens=90, do_sample=False)
    handle.remove()
    assert answer.shape == (1, 90)
    assert memory.sessions == ["ben"] and memory.tokens == 300


# -- search --------------------------------------------------------------------------------------


def test_a_search_finds_what_a_forward_recalls_and_stores_nothing(memory: cmr.Memory) -> None:
    anna = memory.session("anna")
    before = memory.stats()
    found = anna.search(ASKED[0])
    after = memory.stats()
    assert (after["tokens"], after["written_blocks"]) == (
        before["tokens"],
        before["written_blocks"],
    )
    assert anna.recalled == [] and found
    anna.forward(ASKED)
    same = ("start", "end", "score", "session", "token_ids")
    for mine, theirs in zip(found, anna.recalled[0], strict=True):
        assert [getattr(mine, name) for name in same] == [getattr(theirs, name) for name in same]
    assert all(passage.gate == 0 for passage in found)
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert len(anna.search(ASKED[0].tolist(), blocks=1)) == 1
    assert anna.search(ASKED, blocks=0) == []
    assert memory.session("new", create=True).search(ASKED) == []
    with memory.retrieval(blocks=1):
        assert len(anna.search(ASKED)) == 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("which locker?", "no tokenizer is known"),
        ([], "token ids"),
        (text(2, 8), "token ids"),
        (torch.rand(8), "token ids"),
        ([900], "0..199"),
    ],
)
def test_what_cannot_be_searched_for(memory: cmr.Memory, wrong: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        memory.session("anna").search(wrong)


def test_a_wrong_setting_of_a_search(memory: cmr.Memory) -> None:
    with pytest.raises(ConfigError, match="blocks"):
        memory.session("anna").search(ASKED, blocks=-1)


def test_after_detach_a_handle_says_so(memory: cmr.Memory) -> None:
    anna = memory.session("anna")
    memory.detach()
    for run in (anna.generate, anna.forward, anna.read, anna.search):
        with pytest.raises(AttachError):
            run(ASKED)
    with pytest.raises(AttachError):
        memory.paused()


def test_a_question_in_words_on_the_real_model(smollm2: Any) -> None:
    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer) as memory:
        notes = "The garden was quiet and the afternoon was long. " * 40
        fact = "The code of the locker in the hall is 4712. "
        anna = memory.session("anna", create=True)
        anna.read(tokenizer(notes + fact + notes, return_tensors="pt").input_ids)
        found = anna.search("What is the code of the locker?")
        assert "4712" in found[0].text
        assert anna.search("What is the code of the locker?", blocks=1)[0].text == found[0].text
        with pytest.raises(ValueError, match="empty"):
            anna.search("  ")
