"""Memory that fails inside of a request: the model answers without it, and all is stored still."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import StaticCache

import cmr
import cmr.integration.reweave.attention as attention
from cmr.errors import AttachError, ModelMismatchError, SessionError
from cmr.integration.capture.block_writer import BlockWriter
from cmr.integration.core import Core
from cmr.integration.hooks.asker import Asker
from cmr.integration.hooks.residual import ResidualReader
from cmr.integration.reweave.recall import Recall
from cmr.memory.block_store import BlockStore
from cmr.memory.keeper import Keeper
from cmr.memory.sessions import SessionTable
from cmr.retrieval import Retriever
from cmr.retrieval.ask import Ask, Scored, Searched
from tests.integration.tiny import READS_ALL, padded, text

SETTINGS: dict[str, Any] = {"window": 64, "budget": 4096, "refresh": 1000, **READS_ALL}
SECRET = "what anna said"
BEFORE, ASKED = text(200, seed=1), text(1, 40, seed=2)


def breaks(kind: type[BaseException], at: int = 1) -> Callable[..., Any]:
    """A method that raises at its `at`-th call and from then on."""
    calls = 0

    def of(own: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= at:
                raise kind(28, SECRET) if kind is OSError else kind(SECRET)
            return own(*args, **kwargs)

        return broken

    return of  # type: ignore[return-value]


@pytest.fixture
def memory(llama: nn.Module) -> Iterator[cmr.Memory]:
    with cmr.attach(llama, **SETTINGS) as memory:
        memory.read(BEFORE, sessions=["anna"])
        yield memory


def held(memory: cmr.Memory) -> tuple[Any, ...]:
    """All that is stored and whose it is; not how often it was read."""
    ring = memory._core.ring
    texts = [(b.session, b.start, b.end, b.token_ids) for b in memory.inspect()]
    return [x.clone() for tier in ring.parts for x in tier.values()], texts, memory.sessions


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    pairs = zip(one[0], other[0], strict=True)
    return one[1:] == other[1:] and all(torch.equal(a, b) for a, b in pairs)


def answer(memory: cmr.Memory, ids: torch.Tensor = ASKED, **more: Any) -> torch.Tensor:
    """The logits of a greedy answer of 12 tokens, `[tokens, batch, vocabulary]`."""
    out = memory.session("anna").generate(
        ids, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True,
        **more,
    )  # fmt: skip
    return torch.stack(out.logits)


def plain(memory: cmr.Memory, ids: torch.Tensor = ASKED, **more: Any) -> torch.Tensor:
    """The same with a window and without recalling anything."""
    with memory.retrieval(blocks=0):
        return answer(memory, ids, **more)


ERRORS = (RuntimeError, MemoryError, torch.OutOfMemoryError, KeyError)
BROKEN: dict[str, tuple[Any, str, str]] = {
    "searching": (Retriever, "search", "search"),
    "looking ahead": (Asker, "_look_ahead", "search"),
    "choosing what is read": (Core, "recall", "search"),
    "putting together": (Recall, "layer", "read"),
    "gathering": (BlockStore, "gather", "read"),
    "weaving": (attention, "reweave_attention", "read"),
}


@pytest.mark.parametrize(
    ("where", "kind"),
    [*((where, OSError) for where in BROKEN), *(("searching", kind) for kind in ERRORS)],
)
def test_the_answer_is_the_models_own(
    where: str, kind: type[Exception], memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, stage = BROKEN[where]
    want, right = plain(memory), answer(memory)
    assert not torch.equal(want, right), "memory that changes nothing shows nothing"
    before = held(memory)
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, breaks(kind)(getattr(owner, name)))
        assert torch.equal(answer(memory), want)
    failures = memory.stats()["failures"]
    assert list(failures) == [stage] and failures[stage][kind.__name__] >= 1
    assert same(held(memory), before)
    assert torch.equal(answer(memory), right), "the next request has its memory again"
    assert memory.stats()["failures"] == failures


def test_a_search_that_fails_while_decoding_reads_nothing_until_the_next_one(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cmr.attach(llama, **{**SETTINGS, "refresh": 4}) as memory:
        memory.read(BEFORE, sessions=["anna"])
        monkeypatch.setattr(Retriever, "search_again", breaks(OSError)(Retriever.search_again))
        recalls = []
        read = llama.register_forward_hook(
            lambda *_: recalls.append(memory._stepper.last.recall is not None)
        )
        answer(memory)
        read.remove()
        assert recalls == [True] * 4 + [False] * 8
        assert memory.stats()["failures"] == {"search": {"OSError": 2}}


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("side", [None, "left"])
def test_a_layer_that_cannot_read_takes_nothing_back_from_those_before(
    at: int, side: str | None, memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward runs again: its window, and what has left it, are as if it had run once."""
    batch = {"input_ids": text(2, 90, seed=3)}
    if side:
        batch = padded([text(70, seed=3), text(90, seed=4)], side)
    with memory.session("anna", "ben", create=True):
        with memory.retrieval(blocks=0):
            want = memory._core.adapter.model(**batch, use_cache=True)
        monkeypatch.setattr(Recall, "layer", breaks(OSError, at)(Recall.layer))
        have = memory._core.adapter.model(**batch, use_cache=True)
    assert memory.stats()["failures"] == {"read": {"OSError": 1}}
    assert torch.equal(have.logits, want.logits)
    for one, other in zip(have.past_key_values.layers, want.past_key_values.layers, strict=True):
        assert one.seen == other.seen and one.left == other.left
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
    texts = [[b.token_ids for b in memory.inspect("ben", order="position")]]
    assert texts[0], "what left was stored, twice for two forwards"
    assert len(texts[0]) % 2 == 0


@pytest.mark.parametrize("at", range(1, 40, 5))
def test_a_decoding_step_that_cannot_read_is_run_again(
    at: int, memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a block leaves the window in that very step."""
    model, ids = memory._core.adapter.model, text(1, 75, seed=5)
    with memory.session("anna"):
        cache = model(ids[:, :60], use_cache=True).past_key_values
        monkeypatch.setattr(
            attention, "reweave_attention", breaks(RuntimeError, at)(attention.reweave_attention)
        )
        for token in range(60, 75):
            out = model(ids[:, token : token + 1], past_key_values=cache, use_cache=True)
            assert out.logits.isfinite().all() and cache.get_seq_length() == token + 1
            assert {layer.keys.shape for layer in cache.layers} == {cache.layers[0].keys.shape}
            assert cache.layers[0].owner.record.seen == token + 1
    assert memory.stats()["failures"]["read"]["RuntimeError"] >= 1


def test_a_static_cache_is_answered_from_without_memory(
    memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = memory._core.adapter.model

    def logits() -> torch.Tensor:
        cache = StaticCache(config=model.config, max_cache_len=128)
        with memory.session("anna"):
            return model(ASKED, past_key_values=cache).logits

    with memory.retrieval(blocks=0):
        want = logits()
    assert not torch.equal(logits(), want)
    monkeypatch.setattr(BlockStore, "gather", breaks(OSError, 3)(BlockStore.gather))
    assert torch.equal(logits(), want)
    assert memory.stats()["failures"] == {"read": {"OSError": 1}}


def test_states_that_are_blended_in_are_left_out(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "method": "gated", "memory_weight": 0.5}
    with cmr.attach(llama, **settings) as memory:
        memory.read(BEFORE, sessions=["anna"])
        want = plain(memory)
        assert not torch.equal(answer(memory), want)
        monkeypatch.setattr(ResidualReader, "_mixed", breaks(MemoryError, 3)(ResidualReader._mixed))
        assert torch.equal(answer(memory), want)
        assert list(memory.stats()["failures"]) == ["read"]


def test_stored_tokens_that_cannot_say_what_comes_next_are_left_out(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cmr.integration.hooks import next_token

    settings = {**SETTINGS, "memory_weight": 0.0, "knn": True, "knn_threshold": 0.0}
    with cmr.attach(llama, **settings) as memory:
        memory.read(BEFORE, sessions=["anna"])
        ids = BEFORE[None, 40:80]
        want = plain(memory, ids)
        assert not torch.equal(answer(memory, ids), want)
        monkeypatch.setattr(next_token, "propose", breaks(MemoryError)(next_token.propose))
        assert torch.equal(answer(memory, ids), want)
        assert list(memory.stats()["failures"]) == ["next_token"]


class Own:
    """A strategy of somebody's, as good as its `wrong` lets it be."""

    wrong = ""

    def score(self, ask: Ask, store: Searched) -> Scored:
        # The same for the same store: other tests may ask what they find registered.
        newest = store.created[: store.high_water].float() + 1
        scores = newest.expand(len(ask.sessions), -1)
        if self.wrong == "raises":
            raise LookupError(SECRET)
        if self.wrong == "nan":
            scores = scores * float("nan")
        if self.wrong == "shape":
            scores = scores[:, :-1]
        return Scored(passages=scores)


@pytest.mark.parametrize("wrong", ["raises", "shape", "nan"])
def test_a_strategy_of_ones_own_may_break(
    wrong: str, llama: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    cmr.register_strategy("own_that_breaks", lambda _: Own())
    with cmr.attach(llama, **SETTINGS, strategy="own_that_breaks") as memory:
        memory.read(BEFORE, sessions=["anna"])
        want, before = plain(memory), held(memory)
        with caplog.at_level(logging.WARNING, "cmr"):
            Own.wrong = wrong
            try:
                broken = [answer(memory), answer(memory)]
            finally:
                Own.wrong = ""
        if wrong != "nan":
            assert torch.equal(broken[0], want) and torch.equal(broken[1], want)
            said = [record.getMessage() for record in caplog.records if record.name == "cmr"]
            assert len(said) == 1, "once for each kind"
            assert "search" in said[0] and SECRET not in said[0]
        assert all(one.isfinite().all() for one in broken)
        assert same(held(memory), before)
        assert not torch.equal(answer(memory), want)


# -- storing ---------------------------------------------------------------------------------------

FULL: dict[str, tuple[Any, str]] = {
    "the disk is full": (BlockWriter, "write"),
    "no room is made": (Keeper, "make_room"),
    "it cannot be noted": (SessionTable, "note_texts"),
}


def inside(memory: cmr.Memory, name: str) -> list[int]:
    return [token for block in memory.inspect(name) for token in block.token_ids]


@pytest.mark.parametrize("remember", ["left", "all"])
def test_what_cannot_be_stored_is_answered_and_stored_later(
    remember: str, llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text(1, 90, seed=6)
    with cmr.attach(llama, **{**SETTINGS, "remember": remember}) as memory:
        memory.read(BEFORE, sessions=["anna"])
        want, whole = plain(memory, ids), inside(memory, "anna")
        memory.clear()
        memory.read(BEFORE, sessions=["anna"])
        before, model = held(memory), memory._core.adapter.model
        with monkeypatch.context() as broken:
            broken.setattr(BlockWriter, "write", breaks(OSError)(BlockWriter.write))
            with memory.session("anna"), memory.retrieval(blocks=0):
                out = model.generate(
                    ids, max_new_tokens=12, do_sample=False, output_logits=True,
                    return_dict_in_generate=True,
                )  # fmt: skip
            assert torch.equal(torch.stack(out.logits), want)
            assert memory.stats()["failures"]["store"]["OSError"] >= 1
            assert same(held(memory), before)
        # The disk has room again: what has left was kept, and comes with the text's next tokens.
        cache = out.past_key_values
        with memory.session("anna"), memory.retrieval(blocks=0):
            ending = out.sequences[:, cache.get_seq_length() :]
            cache = model(ending, past_key_values=cache, use_cache=True).past_key_values
            for token in range(64):
                model(text(1, 1, seed=token), past_key_values=cache)
        have = inside(memory, "anna")
        assert have[: len(BEFORE)] == BEFORE.tolist()
        assert have[len(BEFORE) :][:64] == whole[len(BEFORE) :][:64]
        assert memory.stats()["lost_tokens"] == 0


def test_a_disk_that_stays_full_costs_no_more_than_a_window(
    memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = memory._core.adapter.model
    monkeypatch.setattr(BlockWriter, "write", breaks(OSError)(BlockWriter.write))
    before = held(memory)
    with memory.session("anna"), memory.retrieval(blocks=0):
        cache = model(text(1, 60, seed=7), use_cache=True).past_key_values
        for token in range(300):
            model(text(1, 1, seed=token), past_key_values=cache)
    record = cache.layers[0].owner.record
    kept = sum(next(iter(layers.values()))[0].shape[2] for layers, _ in record.left)
    assert 0 < kept <= memory.config.window
    lost = memory.stats()["lost_tokens"]
    assert lost > 0 and lost + kept == cache.layers[0].left
    assert same(held(memory), before)


def test_a_window_that_cannot_become_memory_leaves_the_answer(
    llama: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `remember="all"`: the answer is there by then, and the same prompt is stored later."""
    with cmr.attach(llama, **SETTINGS, remember="all") as memory:
        anna = memory.session("anna", create=True)
        with monkeypatch.context() as broken:
            broken.setattr(BlockWriter, "write", breaks(OSError)(BlockWriter.write))
            first = anna.generate(ASKED, max_new_tokens=6, do_sample=False)
        assert first.shape == (1, 46) and memory.tokens == 0
        assert memory.stats()["failures"] == {"store": {"OSError": 1}}
        again = anna.generate(ASKED, max_new_tokens=6, do_sample=False)
        assert torch.equal(first, again) and inside(memory, "anna") == again[0, :-1].tolist()


# -- what is never left out ------------------------------------------------------------------------


@pytest.mark.parametrize("where", BROKEN)
def test_strict_raises(where: str, llama: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, _ = BROKEN[where]
    with cmr.attach(llama, **SETTINGS, strict=True) as memory:
        memory.read(BEFORE, sessions=["anna"])
        monkeypatch.setattr(owner, name, breaks(RuntimeError)(getattr(owner, name)))
        with pytest.raises(RuntimeError, match=SECRET):
            answer(memory)
        assert memory.stats()["failures"] == {}


@pytest.mark.parametrize("where", BROKEN)
def test_an_interrupt_raises(
    where: str, memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, _ = BROKEN[where]
    right = answer(memory)
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, breaks(KeyboardInterrupt)(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            answer(memory)
    assert torch.equal(answer(memory), right) and memory.stats()["failures"] == {}


@pytest.mark.parametrize("kind", [SessionError, ModelMismatchError, AttachError])
def test_a_doubt_about_whose_memory_it_is_raises(
    kind: type[Exception], memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Retriever, "search", breaks(kind)(Retriever.search))
    with pytest.raises(kind):
        answer(memory)
    assert memory.stats()["failures"] == {}


def test_the_models_own_error_is_not_taken_for_memorys(memory: cmr.Memory) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("mine")

    layer = memory._core.adapter.layers[5].mlp
    handle, calls = layer.register_forward_hook(fail), []
    count = memory._core.adapter.layers[4].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="mine"), memory.session("anna"):
        memory._core.adapter.model(ASKED)
    handle.remove(), count.remove()
    assert memory.stats()["failures"] == {} and len(calls) == 1


def test_what_asks_the_memory_itself_raises(
    memory: cmr.Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockWriter, "write", breaks(OSError)(BlockWriter.write))
    before = held(memory)
    with pytest.raises(OSError, match=SECRET):
        memory.read(text(40, seed=8), sessions=["anna"])
    assert same(held(memory), before)


# -- numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["keys", "values"])
def test_stored_states_that_were_damaged_are_not_read(part: str, memory: cmr.Memory) -> None:
    want = plain(memory)
    slots = memory._core.ring.ledger.slots_of(None)
    getattr(memory._core.ring, part)[2][slots] = float("nan")
    assert torch.equal(answer(memory), want)
    assert list(memory.stats()["failures"]["read"]) == ["NonFiniteStateError"]
