"""A conversation is remembered once, however often it is sent, and the next request knows it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StoppingCriteriaList

import cmr
from benchmarks.halfway.trap import Trap
from cmr.memory.sessions import SessionTable
from tests.integration.models.told import told as stored
from tests.integration.tiny import padded, text

SETTINGS: dict[str, Any] = {"window": 64, "block_size": 8, "threshold": 9.0}


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, remember="all", **SETTINGS) as memory:
        yield memory


def generate(memory: cmr.Memory, name: str, ids: list[int], tokens: int = 6, **more: Any) -> Any:
    """Prompt and answer, without the last token, which never goes through the model."""
    anna = memory.session(name, create=True)
    out = anna.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, **more)
    return out[0].tolist()[:-1]


def seen(memory: cmr.Memory, name: str) -> int:
    """Tokens of a session whose ids are kept to know them again."""
    texts = memory._core.table.texts(memory._core.table.require(name))
    return sum(len(run.ids) for text in texts.values() for run in text.runs)


# -- the end of a generate -------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 60, 200])
def test_all_of_a_request_is_memory_when_it_ends(memory: cmr.Memory, length: int) -> None:
    said = generate(memory, "anna", text(length).tolist(), 20)
    assert stored(memory, "anna") == said
    ends = [0, *(block.end for block in memory.inspect("anna"))]
    assert [block.start for block in memory.inspect("anna")] == ends[:-1]
    assert ends[-1] == len(said)


def test_without_asking_for_it_what_is_in_the_window_is_not(llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        generate(memory, "anna", text(40).tolist())
        assert memory.tokens == 0


@pytest.mark.parametrize("remember", ["left", "all"])
def test_a_resent_conversation_is_stored_once(remember: str, llama: nn.Module) -> None:
    with cmr.attach(llama, remember=remember, **SETTINGS) as memory:
        said: list[int] = []
        for turn in range(6):
            said = generate(memory, "anna", [*said, *text(30, seed=turn).tolist()])
        have = stored(memory, "anna")
        if remember == "all":
            assert have == said
        else:  # all that left: neither the sinks nor the newest tokens
            assert have == said[4 : 4 + len(have)] and len(have) > len(said) - 80
        position = memory._core.table.position(memory._core.table.require("anna"))
        assert position == len(have)


def test_blocks_begin_where_something_new_begins(memory: cmr.Memory) -> None:
    said = generate(memory, "anna", text(21).tolist())
    generate(memory, "anna", [*said, *text(20, seed=1).tolist()])
    starts = [block.start for block in memory.inspect("anna")]
    assert starts == [0, 8, 16, 24, 26, 34, 42, 50]


def test_an_edited_turn_is_stored_whole_and_what_is_before_it_once(memory: cmr.Memory) -> None:
    first, turn = generate(memory, "anna", text(20).tolist()), text(20, seed=1).tolist()
    generate(memory, "anna", [*first, *turn])
    before = memory.tokens
    edited = [*turn[:5], *text(15, seed=2).tolist()]
    said = generate(memory, "anna", [*first, *edited])
    assert stored(memory, "anna")[before:] == said[len(first) :]
    # Both ways of going on are known from here on.
    before = memory.tokens
    generate(memory, "anna", [*first, *turn], 1)
    generate(memory, "anna", said, 1)
    assert memory.tokens == before


def test_two_beginnings_alike_are_two_conversations(memory: cmr.Memory) -> None:
    ids = text(20).tolist()
    generate(memory, "anna", ids)
    other = [*ids[:5], *text(15, seed=1).tolist()]
    said = generate(memory, "anna", other)
    assert stored(memory, "anna")[25:] == said


def test_what_one_session_was_sent_is_new_to_another(memory: cmr.Memory) -> None:
    said = generate(memory, "anna", text(40).tolist())
    assert generate(memory, "ben", text(40).tolist()) == said
    assert stored(memory, "anna") == stored(memory, "ben") == said
    assert memory.session("ben").remember(said).known == len(said)


def test_rows_of_a_batch_know_each_their_own(llama: nn.Module) -> None:
    first, second = text(50).tolist(), text(30, seed=1).tolist()
    with cmr.attach(llama, remember="all", **SETTINGS) as memory:
        anna, ben = generate(memory, "anna", first), generate(memory, "ben", second)
        texts = [[*anna, *text(9, seed=2).tolist()], [*ben, *text(33, seed=3).tolist()]]
        fresh = text(12, seed=4)
        batch = padded([*map(torch.tensor, texts), fresh], "left")
        longest = batch.pop("position_ids").shape[1]
        three = memory.session("anna", "ben", "cleo", create=True)
        out = three.generate(**batch, max_new_tokens=7, do_sample=False)
        for name, row, ids in zip(("anna", "ben", "cleo"), out, [*texts, fresh], strict=True):
            assert stored(memory, name) == [*map(int, ids), *row[longest:-1].tolist()]


def test_what_fills_rows_that_ended_is_not_stored(llama: nn.Module) -> None:
    ids = text(2, 30)
    with cmr.attach(llama, **SETTINGS):
        ends = int(llama.generate(ids, max_new_tokens=4, do_sample=False)[0, -1])
    ending: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": 0, "max_new_tokens": 90}
    for remember in ("all", "left"):
        with cmr.attach(llama, remember=remember, **SETTINGS) as memory:
            out = llama.generate(ids, **ending, do_sample=False)
            assert out.shape[1] == 120 and (out[0, 34:] == 0).all()
            answer = out[0, 30:].tolist()
            have = stored(memory, "0")
            want = [*ids[0].tolist(), *answer[: answer.index(ends)]]
            assert have == (want if remember == "all" else want[4:])
            assert len(stored(memory, "1")) > 50


def test_of_several_answers_nobody_knows_which_was_given(memory: cmr.Memory) -> None:
    ids = text(2, 30)
    model = memory._core.adapter.model
    model.generate(ids, max_new_tokens=8, num_beams=3, do_sample=False)
    assert [stored(memory, name) for name in "01"] == ids.tolist()
    anna = memory.session("anna", create=True)
    anna.generate(ids[:1], max_new_tokens=8, num_return_sequences=3, do_sample=True)
    assert stored(memory, "anna") == ids[0].tolist()


def test_a_cache_that_goes_on_is_stored_once(memory: cmr.Memory) -> None:
    anna, said, cache = memory.session("anna", create=True), text(20).tolist(), None
    for turn in range(5):
        out = anna.generate(
            torch.tensor([said]),
            past_key_values=cache,
            max_new_tokens=10,
            do_sample=False,
            return_dict_in_generate=True,
        )
        cache, said = out.past_key_values, out.sequences[0].tolist()
        assert stored(memory, "anna") == said[:-1]
        said += text(15, seed=turn + 1).tolist()
    assert memory.absorb(cache) == 0


def test_what_takes_the_place_of_tokens_taken_back_is_stored(memory: cmr.Memory) -> None:
    anna, ids = memory.session("anna", create=True), text(20).tolist()
    more: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
    cache = anna.generate(torch.tensor([ids]), max_new_tokens=6, **more).past_key_values
    cache.crop(20 - cache.get_seq_length())
    said = [*ids, *text(10, seed=1).tolist()]
    out = anna.generate(torch.tensor([said]), past_key_values=cache, max_new_tokens=6, **more)
    assert stored(memory, "anna")[25:] == out.sequences[0, 20:-1].tolist()


class _Listener:
    """A streamer that looks at the memory when it is told of the end."""

    def __init__(self, memory: cmr.Memory) -> None:
        self.memory, self.tokens, self.at_the_end = memory, 0, -1

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.numel()

    def end(self) -> None:
        self.at_the_end = self.memory.tokens


def test_a_streamer_ends_when_all_is_remembered(memory: cmr.Memory) -> None:
    listener = _Listener(memory)
    generate(memory, "anna", text(20).tolist(), streamer=listener)
    assert (listener.tokens, listener.at_the_end) == (26, 25)


def test_in_threads_everybody_is_remembered(memory: cmr.Memory) -> None:
    names, said = [f"user {n}" for n in range(4)], dict[str, list[int]]()
    for name in names:
        memory.session(name, create=True)

    def talk(name: str, seed: int) -> None:
        with torch.no_grad():
            ids: list[int] = []
            for turn in range(3):
                ids = generate(memory, name, [*ids, *text(12, seed=9 * seed + turn).tolist()])
            said[name] = ids

    threads = [threading.Thread(target=talk, args=(n, i)) for i, n in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: stored(memory, name) for name in names} == said


def test_a_generate_that_fails_stores_nothing_more(memory: cmr.Memory) -> None:
    def fail(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if ids.shape[1] > 24:
            raise KeyboardInterrupt
        return torch.zeros(len(ids), dtype=torch.bool)

    with pytest.raises(KeyboardInterrupt):
        generate(
            memory, "anna", text(20).tolist(), 20, stopping_criteria=StoppingCriteriaList([fail])
        )
    assert memory.tokens == 0 and seen(memory, "anna") == 0
    assert stored(memory, "anna") == []
    assert stored(memory, "anna") != generate(memory, "anna", text(20).tolist())


@pytest.mark.parametrize("at", range(1, 900, 29))
def test_an_interrupt_leaves_all_of_a_conversation_or_nothing(memory: cmr.Memory, at: int) -> None:
    said = text(40).tolist()
    anna = memory.session("anna", create=True)
    anna.remember(said)
    memory.forget("anna", text=said[12:14])
    before, whole = stored(memory, "anna"), [*said, *text(8, seed=1).tolist()]
    assert 20 < seen(memory, "anna") == len(before) < 40
    trap = Trap("line", at, "KeyboardInterrupt")
    with contextlib.suppress(KeyboardInterrupt):
        trap.run(lambda: anna.remember(whole))
    after = sorted(stored(memory, "anna"))
    assert trap.hit and after in (sorted(before), sorted(whole))
    assert seen(memory, "anna") == len(after)
    anna.remember(whole)
    assert sorted(stored(memory, "anna")) == sorted(whole)


def test_what_cannot_be_noted_is_not_stored(llama: nn.Module, monkeypatch: Any) -> None:
    memory = cmr.attach(llama, remember="all", strict=True, **SETTINGS)
    said = generate(memory, "anna", text(20).tolist())
    noted, table = SessionTable.note_texts, memory._core.table

    def full(*args: Any) -> None:
        noted(*args)
        raise MemoryError

    monkeypatch.setattr(SessionTable, "note_texts", full)
    longer = [*said, *text(20, seed=1).tolist()]
    before = dict(table.texts(0))
    with pytest.raises(MemoryError):
        generate(memory, "anna", longer)
    assert stored(memory, "anna") == said and table.texts(0) == before
    monkeypatch.undo()
    assert generate(memory, "anna", longer) == stored(memory, "anna")


def test_a_memory_that_is_paused_remembers_nothing(memory: cmr.Memory) -> None:
    with memory.paused():
        generate(memory, "anna", text(20).tolist())
    assert memory.tokens == 0


def test_a_session_that_ends_meanwhile_is_not_made_again(memory: cmr.Memory) -> None:
    class Ends(_Listener):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            if self.tokens == 23:
                self.memory.forget("anna")

    generate(memory, "anna", text(20).tolist(), streamer=Ends(memory))
    assert memory.sessions == [] and memory.tokens == 0


# -- remember --------------------------------------------------------------------------------------


def test_what_is_remembered_is_recognised_in_prompts_and_the_other_way_round(
    memory: cmr.Memory,
) -> None:
    anna, ids = memory.session("anna", create=True), text(150).tolist()
    report = anna.remember(ids)
    assert (report.new, report.known, report.blocks) == (150, 0, 19)
    assert stored(memory, "anna") == ids
    said = generate(memory, "anna", [*ids, *text(20, seed=1).tolist()])
    assert stored(memory, "anna") == said
    report = anna.remember(torch.tensor([[*said, 5, 6, 7]]))
    assert (report.new, report.known, report.blocks) == (3, len(said), 1)
    assert stored(memory, "anna") == [*said, 5, 6, 7]
    assert anna.remember(said).new == 0


def test_remembering_more_reads_no_more_than_it_must(memory: cmr.Memory) -> None:
    anna, ids = memory.session("anna", create=True), text(2000).tolist()
    anna.remember(ids)
    fed: list[int] = []

    def count(_: nn.Module, __: tuple[Any, ...], given: dict[str, Any]) -> None:
        fed.append(given["input_ids"].shape[1])

    decoder = memory._core.adapter.decoder
    counting = decoder.register_forward_pre_hook(count, with_kwargs=True)
    try:
        anna.remember([*ids, *text(10, seed=1).tolist()])
        # What is new, and half a window before it.
        assert 10 < sum(fed) <= 10 + 32
        fed.clear()
        anna.remember(ids)
        assert not fed
    finally:
        counting.remove()


def test_remembered_late_is_what_it_would_have_been_at_once(llama: nn.Module) -> None:
    """Keys and values of what is new are those that the text before it gives, nearly."""
    ids = text(64).tolist()

    def keys(parts: list[int]) -> torch.Tensor:
        with cmr.attach(llama, window=256, left_context=128, block_size=8) as memory:
            for part in parts:
                memory.session("anna", create=True).remember(ids[:part])
            assert stored(memory, "anna") == ids
            return memory._core.ring.parts[0]["keys.2"][:8].clone()

    assert torch.allclose(keys([64]), keys([24, 40, 64]), atol=1e-4)


@pytest.mark.parametrize(
    ("messages", "error", "match"),
    [
        ("hello", TypeError, "got str"),
        ([], ValueError, "token ids"),
        ([{"role": "user"}], ValueError, r"messages\[0\].*NoneType"),
        ([{"role": "user", "content": "a"}, 7], ValueError, r"messages\[1\].*int"),
        ([{"role": "user", "content": "a"}], ValueError, "chat template"),
        (torch.zeros(2, 3, dtype=torch.int64), ValueError, r"\[2, 3\]"),
        ([5, 10_000], ValueError, "0..199"),
    ],
)
def test_what_is_no_conversation(
    memory: cmr.Memory, messages: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        memory.session("anna", create=True).remember(messages)
    assert memory.tokens == 0


def test_remember_is_of_one_session(memory: cmr.Memory) -> None:
    both = memory.session("anna", "ben", create=True)
    with pytest.raises(ValueError, match="one session"):
        both.remember([5, 6])


def test_what_must_not_be_stored_is_not_kept_either(llama: nn.Module) -> None:
    ids = text(30)
    with cmr.attach(llama, remember="all", keep=lambda t: t != ids[7], **SETTINGS) as memory:
        generate(memory, "anna", ids.tolist())
        memory.session("anna").remember(ids.tolist())
        assert ids[7] not in stored(memory, "anna") and seen(memory, "anna") == memory.tokens
        texts = memory._core.table.texts(0).values()
        assert not any((run.ids == ids[7]).any() for text in texts for run in text.runs)


# -- forgetting and the rest of a session's life ---------------------------------------------------


def kept_ids(memory: cmr.Memory) -> set[int]:
    core = memory._core
    return {
        int(token)
        for info in core.table.infos()
        for text in core.table.texts(info.number).values()
        for run in text.runs
        for token in run.ids
    }


def test_what_is_forgotten_is_new_where_it_is_sent_again(memory: cmr.Memory) -> None:
    ids = list(range(10, 90))
    said = generate(memory, "anna", ids)
    memory.forget("anna", text=ids[30:34])
    gone = set(said) - set(stored(memory, "anna"))
    assert set(ids[30:34]) <= gone and not gone & kept_ids(memory)
    said = generate(memory, "anna", [*said, *text(10, seed=1).tolist()])
    # The forgotten blocks are stored again, and nothing twice.
    assert sorted(stored(memory, "anna")) == sorted(said)


def test_what_was_evicted_is_not_stored_again(llama: nn.Module) -> None:
    with cmr.attach(llama, remember="all", budget=64, **SETTINGS) as memory:
        said: list[int] = []
        for turn in range(6):
            said = generate(memory, "anna", [*said, *text(30, seed=turn).tolist()])
        written = memory.stats()["written_blocks"]
        assert stored(memory, "anna") == said[-len(stored(memory, "anna")) :]
        assert written <= len(said) / 8 + 6  # a block of each turn may not be full
        # Once something of the session is forgotten, nothing of what was evicted is kept.
        evicted = set(said) - set(stored(memory, "anna"))
        assert evicted & kept_ids(memory)
        memory.forget("anna", text=said[-4:])
        assert not kept_ids(memory) - set(stored(memory, "anna"))


def test_what_expired_is_not_kept(llama: nn.Module, monkeypatch) -> None:
    now = time.time()
    with cmr.attach(llama, remember="all", ttl=60, budget=64, **SETTINGS) as memory:
        generate(memory, "anna", text(100).tolist())
        assert len(kept_ids(memory)) > 40
        monkeypatch.setattr(time, "time", lambda: now + 100)
        memory.consolidate()
        assert not kept_ids(memory) and memory.tokens == 0
        said = generate(memory, "anna", text(30).tolist())
        assert stored(memory, "anna") == said


def test_copies_and_joined_sessions_know_what_they_store(memory: cmr.Memory) -> None:
    said = generate(memory, "anna", text(40).tolist())
    memory.fork("anna", "copy")
    other = generate(memory, "ben", text(40, seed=1).tolist())
    memory.rename("ben", "bert")
    memory.merge("bert", into="anna")
    before = memory.tokens
    for name, ids in (("copy", said), ("anna", said), ("anna", other)):
        assert memory.session(name).remember(ids).known == len(ids)
    assert memory.tokens == before
    # Forgetting in the joined session finds what came with the other one.
    memory.forget("anna", text=other[10:14])
    assert memory.session("anna").remember(other).new > 0
    assert memory.session("copy").remember(other).known == 0
    memory.forget("copy")
    assert memory.session("copy", create=True).remember(said).new == len(said)


def test_it_is_known_after_it_was_saved_and_loaded(llama: nn.Module, tmp_path: Path) -> None:
    settings = {"remember": "all", **SETTINGS}
    with cmr.attach(llama, **settings) as memory:
        said = generate(memory, "anna", list(range(10, 90)))
        generate(memory, "ben", text(20).tolist())
        memory.save(tmp_path / "m", ["anna"])
    with cmr.load(tmp_path / "m", llama) as memory:
        assert memory.config.remember == "all"
        assert memory.session("anna").remember(said).known == len(said)
    with cmr.attach(llama, **settings) as memory:
        generate(memory, "ben", text(20).tolist())  # other slots and numbers than before
        memory.load(tmp_path / "m")
        said = generate(memory, "anna", [*said, *text(10, seed=1).tolist()])
        assert stored(memory, "anna") == said


def test_what_is_forgotten_in_a_folder_is_known_by_nobody_who_loads_it(
    llama: nn.Module, tmp_path: Path
) -> None:
    with cmr.attach(llama, remember="all", **SETTINGS) as memory:
        said = generate(memory, "anna", list(range(10, 90)))
        memory.save(tmp_path / "m")
        memory.forget("anna", text=said[30:34])
        kept = stored(memory, "anna")
    with cmr.load(tmp_path / "m", llama) as memory:
        assert stored(memory, "anna") == kept and kept_ids(memory) == set(kept)
        report = memory.session("anna").remember(said)
        assert (report.known, report.new) == (len(kept), len(said) - len(kept))
        assert sorted(stored(memory, "anna")) == sorted(said)
