"""What users of transformers do with a cache: rows repeated and chosen, copies, other orders."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import cmr
from tests.integration.tiny import greedy, padded, text
from tests.kernels.helpers.compare import assert_close

WINDOW, SINKS, BLOCK = 64, 4, 8
SETTINGS: dict[str, Any] = {
    "window": WINDOW,
    "block_size": BLOCK,
    "threshold": 0.0,
    "memory_weight": 0.8,
    "refresh": 3,
    "query_tokens": 16,
}
TOLERANCE = {"atol": 2e-4, "rtol": 1e-4}
NAMES = ("anna", "ben", "carl")


@pytest.fixture(params=["llama", "gpt2", "gemma3-sliding"])
def model(request: pytest.FixtureRequest, tiny: Callable[[str], nn.Module]) -> nn.Module:
    return tiny(request.param)


def remembering(model: nn.Module, **settings: Any) -> cmr.Memory:
    """A memory in which each of `NAMES` has read a text."""
    memory = cmr.attach(model, **{**SETTINGS, **settings})
    memory.read(text(3, 120, seed=1), sessions=NAMES)
    return memory


def go_on(model: nn.Module, cache: DynamicCache, ids: torch.Tensor) -> torch.Tensor:
    """Logits `[batch, tokens, vocabulary]` of `ids`, token by token."""
    return torch.cat(
        [model(ids[:, at : at + 1], past_key_values=cache).logits for at in range(ids.shape[1])],
        dim=1,
    )


def told(memory: cmr.Memory, session: str, since: int = 0) -> list[int]:
    """Token ids that a session stored, in the order of its text."""
    ring, found = memory._core.ring, []
    for entry in memory.entries(session):
        ids, places = ring.token_ids[entry.slot], ring.positions[entry.slot]
        found += [int(token) for token, at in zip(ids, places, strict=True) if at >= since]
    return found


# -- copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("begun", "steps"), [(20, 0), (20, 7), (90, 7)])
def test_a_copy_goes_on_as_its_original_does(steps: int, begun: int, model: nn.Module) -> None:
    """Before and behind the first leave, with and without searches of a decoding step behind it."""
    ids, more = text(1, begun + steps, seed=4), text(1, 60, seed=5)
    with remembering(model) as memory, memory.session("anna"):
        cache = model(ids[:, :begun], use_cache=True).past_key_values
        if steps:
            go_on(model, cache, ids[:, begun:])
        twin = copy.deepcopy(cache)
        held = [layer.keys for layer in twin.layers]
        before = memory.tokens
        want = go_on(model, cache, more)
        stored = memory.tokens - before
        assert all(torch.equal(a, b.keys) for a, b in zip(held, twin.layers, strict=True))
    with remembering(model) as memory, memory.session("anna"):
        cache = model(ids[:, :begun], use_cache=True).past_key_values
        if steps:
            go_on(model, cache, ids[:, begun:])
        before, twin = memory.tokens, copy.deepcopy(cache)
        assert torch.equal(go_on(model, twin, more), want)
        assert memory.tokens - before == stored > 0


def test_what_the_original_searches_for_is_not_read_by_its_copy(llama: nn.Module) -> None:
    """A search may write over the choice before it, in place."""
    with remembering(llama) as memory, memory.session("anna"):
        cache = llama(text(1, 20), use_cache=True).past_key_values
        go_on(llama, cache, text(1, 3, seed=2))
        record = cache.layers[0].owner.record
        twin = copy.deepcopy(cache).layers[0].owner.record
        assert record.search.query is not None and twin.search.query is not record.search.query
        chosen = (
            twin.search.recall.choice.table.clone(),
            twin.search.query.maxima.clone(),
            twin.search.query.mask.clone(),
        )
        go_on(llama, cache, text(1, 12, seed=3))
        assert torch.equal(twin.search.recall.choice.table, chosen[0])
        assert torch.equal(twin.search.query.maxima, chosen[1]) and torch.equal(
            twin.search.query.mask, chosen[2]
        )


def test_forgetting_reaches_copies_of_caches(llama: nn.Module) -> None:
    with remembering(llama) as memory, memory.session("anna"):
        cache = llama(text(1, 20), use_cache=True).past_key_values
        twin = copy.deepcopy(copy.deepcopy(cache))
        del cache
        gc.collect()
        record = twin.layers[0].owner.record
        assert record.search.recall is not None and record in memory._core.records
        memory.forget("anna", ids=memory.inspect("anna")[0].id)
        assert record.search.recall is None and record.search.query is None


def test_a_copy_is_cropped_and_reordered_for_itself(llama: nn.Module) -> None:
    with remembering(llama) as memory, memory.session("anna"):
        cache = llama(text(2, 20), use_cache=True).past_key_values
        twin = copy.deepcopy(cache)
        twin.crop(-3)
        twin.batch_select_indices(torch.tensor([1]))
        owner, other = cache.layers[0].owner, twin.layers[0].owner
        assert (owner.record.seen, other.record.seen) == (20, 17)
        assert (owner.record.held, other.record.held) == (20 - SINKS, 17 - SINKS)
        assert (len(owner.record.sessions), len(other.record.sessions)) == (2, 1)
        assert len({id(layer.owner) for layer in twin.layers}) == 1


@pytest.mark.parametrize("what", ["decoder", "memory"])
def test_what_holds_a_memory_is_not_copied(what: str, llama: nn.Module) -> None:
    with cmr.attach(llama, **SETTINGS) as memory:
        thing = {"decoder": llama.get_decoder(), "memory": memory}[what]
        with pytest.raises(cmr.AttachError, match=r"detach\(\) first"):
            copy.deepcopy(thing)
        for saved in (llama, memory):
            with pytest.raises(cmr.AttachError, match=r"detach\(\) first"):
                torch.save(saved, io.BytesIO())


def test_the_copy_of_a_model_is_a_model_without_a_memory(llama: nn.Module) -> None:
    ids = text(1, 20)
    plain = greedy(llama, ids)
    with remembering(llama) as memory, torch.no_grad():
        anna = memory.session("anna")
        cache = anna.forward(ids, use_cache=True).past_key_values
        want, recalled = anna.generate(ids, max_new_tokens=12, do_sample=False), anna.recalled
        twin = copy.deepcopy(llama)
        assert torch.equal(greedy(twin, ids), plain)
        assert not hasattr(twin, "_cmr_memory") and "generate" not in vars(twin)
        assert anna.recalled == recalled and recalled[0]
        assert torch.equal(anna.generate(ids, max_new_tokens=12, do_sample=False), want)
        anna.forward(ids[:, :1], past_key_values=cache)
        assert anna.recalled[0]
        with cmr.attach(twin, **SETTINGS) as other:
            other.read(text(100))
            assert memory.attached and other.attached

        def inside(*_: Any) -> None:
            with pytest.raises(cmr.AttachError, match="in the middle of a forward"):
                copy.deepcopy(llama)

        last: Any = llama.model.layers[-1]
        handle = last.register_forward_pre_hook(inside)
        anna.forward(ids)
        handle.remove()
        assert anna.recalled[0]
    assert "__deepcopy__" not in vars(llama)
    assert torch.equal(greedy(llama, ids), plain)


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [20, 90])
def test_repeated_rows_share_a_session_and_one_writes(begun: int, model: nn.Module) -> None:
    ids, more = text(2, begun, seed=4), text(2, 50, seed=5)
    with remembering(model) as memory, memory.session("anna", "ben"):
        cache = model(ids, use_cache=True).past_key_values
        want = go_on(model, cache, more)
        stored = [told(memory, name, since=120) for name in NAMES]
    with remembering(model) as memory, memory.session("anna", "ben"):
        cache = model(ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(3)
        other = text(6, 50, seed=6)
        other[::3] = more
        have = go_on(model, cache, other)
        record = cache.layers[0].owner.record
        assert record.writers == [0, 3]
        assert [told(memory, name, since=120) for name in NAMES] == stored
    assert stored[0] and stored[1] and not stored[2]
    assert_close("logits", have[::3], want, **TOLERANCE)


@pytest.mark.parametrize(
    ("begun", "indices"), [(20, [0, 2]), (90, [2, 0]), (20, [True, False, True])]
)
def test_rows_that_stay_go_on_with_their_sessions(
    begun: int, indices: list[Any], model: nn.Module
) -> None:
    ids, more = text(3, begun, seed=4), text(3, 50, seed=5)
    rows = torch.arange(3)[torch.tensor(indices)]
    with remembering(model) as memory, memory.session(*NAMES):
        cache = model(ids, use_cache=True).past_key_values
        go_on(model, cache, more[:, :4])
        want = go_on(model, cache, more[:, 4:])[rows]
        stored = [told(memory, NAMES[row], since=120) for row in rows]
    with remembering(model) as memory, memory.session(*NAMES):
        cache = model(ids, use_cache=True).past_key_values
        go_on(model, cache, more[:, :4])
        cache.batch_select_indices(torch.tensor(indices))
        have = go_on(model, cache, more[rows, 4:])
        assert {p.session for p in memory.recalled[0]} == {NAMES[rows[0]]}
        assert [told(memory, NAMES[row], since=120) for row in rows] == stored
        if begun == 20:
            assert not told(memory, NAMES[1], since=120)
    assert_close("logits", have, want, **TOLERANCE)


def test_who_wrote_goes_on_else_another_row_of_its_input(llama: nn.Module) -> None:
    with remembering(llama) as memory, memory.session("anna", "ben"):
        cache = llama(text(2, 20), use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        record = cache.layers[0].owner.record
        names = [memory._core.name_of(number) for number in record.sessions]
        assert (record.writers, names) == ([0, 2], ["anna", "anna", "ben", "ben"])
        cache.batch_select_indices(torch.tensor([3, 1, 0]))
        names = [memory._core.name_of(number) for number in record.sessions]
        assert (record.writers, names) == ([0, 2], ["ben", "anna", "anna"])
        cache.batch_select_indices(torch.tensor([1]))
        assert record.writers == [0]
        cache.batch_repeat_interleave(2)
        assert record.writers == [0]


def test_padding_follows_its_row(llama: nn.Module) -> None:
    texts = [text(n, seed=n) for n in (40, 12, 33)]
    batch, more = padded(texts, "left"), text(3, 60, seed=5)
    batch.pop("position_ids")
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 60), value=1)
    order = torch.tensor([1, 2])

    def run(rows: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
        with cmr.attach(llama, **SETTINGS) as memory:
            with memory.session(*NAMES, create=True):
                cache = llama(**batch, use_cache=True).past_key_values
                if len(rows) < 3:
                    cache.batch_select_indices(rows)
                logits = [
                    llama(
                        more[rows, at : at + 1],
                        attention_mask=mask[rows, : 41 + at],
                        past_key_values=cache,
                    ).logits
                    for at in range(60)
                ]
            return torch.cat(logits, dim=1), [told(memory, NAMES[row]) for row in rows]

    want, stored = run(torch.arange(3))
    have, kept = run(order)
    assert kept == stored[1:]
    assert all(kept)
    assert_close("logits", have, want[1:], **TOLERANCE)


def test_rows_in_another_order_keep_their_sessions(llama: nn.Module) -> None:
    """Beams stay with their input; a user may reorder as he likes."""
    ids, more, order = text(2, 20, seed=4), text(2, 60, seed=5), torch.tensor([1, 0])
    with remembering(llama) as memory, memory.session("anna", "ben"):
        cache = llama(ids, use_cache=True).past_key_values
        go_on(llama, cache, more[:, :4])
        cache.reorder_cache(order)
        go_on(llama, cache, more[order, 4:])
        assert [row[0].session for row in memory.recalled] == ["ben", "anna"]
        for row, name in enumerate(("anna", "ben")):
            both = [*ids[row].tolist(), *more[row].tolist()]
            kept = told(memory, name, since=120)
            assert kept and kept == both[SINKS : SINKS + len(kept)]


def test_a_cache_that_was_reset_begins_another_text(llama: nn.Module) -> None:
    """Of other rows, another session and another padding, in the memory's sight or not."""
    with remembering(llama) as memory:
        with memory.session("anna", "ben"):
            batch = padded([text(90), text(70, seed=1)], "left")
            cache = llama(**batch, use_cache=True).past_key_values
        record = cache.layers[0].owner.record
        cache.reset()
        assert cache.layers[0].owner.record is None and record.seen
        before = told(memory, "carl", since=120)
        with memory.session("carl"):
            ids = text(1, 100, seed=7)
            go_on(llama, cache, ids)
            kept = told(memory, "carl", since=120)
        assert not before and kept == ids[0, SINKS : SINKS + len(kept)].tolist()
        cache.reset()
        memory.pause()
        out = go_on(llama, cache, text(3, 100, seed=8))
        assert out.isfinite().all()


def test_sinks_of_a_text_are_gone_when_its_cache_is_reset(model: nn.Module) -> None:
    """Also where the next text is as long, and its sinks are turned just as far."""
    with remembering(model) as memory:
        caches = [model(text(1, 5), use_cache=True).past_key_values for _ in range(2)]
        memory.pause()
        for cache in caches:
            cache.reset()
        go_on(model, caches[0], text(1, 60))
        go_on(model, caches[0], text(1, WINDOW + SINKS - 59, seed=1))  # a block leaves
        logits = []
        for cache in caches:
            cache.reset()
            assert not cache.layers[0].owner.first
            go_on(model, cache, text(1, 60, seed=2))
            go_on(model, cache, text(1, WINDOW + SINKS - 59, seed=3))
            assert cache.layers[0].left == BLOCK
            logits.append(go_on(model, cache, text(1, 3, seed=4)))
        assert torch.equal(*logits)


# -- taking back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [10, 30])
def test_tokens_taken_back_leave_no_trace(begun: int, model: nn.Module) -> None:
    """A search after some steps asks with what stayed; steps that were taken back do not count."""
    ids, more = text(1, begun, seed=4), text(1, 20, seed=5)
    with remembering(model, refresh=6) as memory, memory.session("anna"):
        want = go_on(model, model(ids, use_cache=True).past_key_values, more)
        searches = memory.stats()["searches"]
        cache = model(ids, use_cache=True).past_key_values
        for at in range(20):
            have = go_on(model, cache, more[:, at : at + 1])
            guesses = min(2, max(0, 4 - at % 6))  # none where the next step searches
            if guesses:
                go_on(model, cache, text(1, guesses, seed=at))
                cache.crop(-guesses)
            assert_close(f"step {at}", have[:, 0], want[:, at], **TOLERANCE)
        assert memory.stats()["searches"] == 2 * searches


def test_what_left_the_window_cannot_be_taken_back(llama: nn.Module) -> None:
    with remembering(llama) as memory, memory.session("anna"):
        cache = llama(text(1, 100), use_cache=True).past_key_values
        layer = cache.layers[0]
        kept = layer.keys.shape[2] - SINKS
        held = layer.keys.clone()
        with pytest.raises(ValueError, match=f"at most {kept} tokens"):
            cache.crop(-(kept + 1))
        assert torch.equal(layer.keys, held) and cache.get_seq_length() == 100
        cache.crop(-kept)
        assert (cache.get_seq_length(), layer.owner.record.seen) == (100 - kept, 100 - kept)
        assert go_on(llama, cache, text(1, 30, seed=3)).isfinite().all()
        whole = llama(text(1, 10), use_cache=True).past_key_values
        whole.crop(-8)
        assert whole.layers[0].owner.record.seen == 2
