"""Recall through every way of generating, and whose memory a row reads meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StaticCache
from transformers.generation.streamers import BaseStreamer

import cmr
from tests.integration.tiny import FAMILIES, READS_ALL, greedy, padded, text

ALWAYS: dict[str, Any] = {"window": 64, "memory_weight": 0.8, "threshold": 0.0}
"""Settings under which something is recalled by every question."""


def remembering(model: nn.Module, **settings: Any) -> cmr.Memory:
    """A memory in which anna and ben have read a text each."""
    memory = cmr.attach(model, **{**ALWAYS, **settings})
    memory.read(text(2, 200, seed=1), sessions=["anna", "ben"])
    return memory


def test_greedy_recalls(model: nn.Module) -> None:
    ids = text(1, 20)
    plain = greedy(model, ids, tokens=24)
    with remembering(model) as memory:
        assert torch.equal(greedy(model, ids, tokens=24), plain)
        with memory.session("anna"):
            anna = greedy(model, ids, tokens=24)
            assert memory.recalled[0][0].session == "anna"
        with memory.session("ben"):
            ben = greedy(model, ids, tokens=24)
    assert not torch.equal(anna, plain) and not torch.equal(ben, plain)
    assert not torch.equal(anna, ben)


@pytest.mark.parametrize("how", ["greedy", "beams", "sampled"])
def test_rows_follow_their_own_session(how: str, model: nn.Module) -> None:
    """Beams and returned sequences come as groups of rows; a row of ben's never sees anna's."""
    ways = {
        "greedy": {"do_sample": False},
        "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        "sampled": {"do_sample": True, "num_return_sequences": 3, "top_k": 1},
    }
    ids = text(2, 20, seed=2)
    seen: list[list[str]] = []
    with remembering(model, refresh=3) as memory:

        def look(*_: object) -> None:
            owners = memory._core.ring.session
            step = memory._stepper.step
            for number, slots in zip(step.sessions, step.recall.choice.table, strict=True):
                assert (owners[slots[slots >= 0]] == number).all()
            seen.append([memory._core.name_of(number) for number in step.sessions])

        last = memory._core.adapter.layers[4]
        handle = last.register_forward_hook(look)
        with memory.session("anna", "ben"):
            both = model.generate(ids, max_new_tokens=12, **ways[how])
        handle.remove()
        group = len(seen[-1]) // 2
        assert group == {"greedy": 1, "beams": 3, "sampled": 3}[how]
        assert len(seen) == 12
        assert all(row == ["anna"] * group + ["ben"] * group for row in seen)
        alone = []
        for row, name in enumerate(["anna", "ben"]):
            with memory.session(name):
                alone.append(model.generate(ids[row : row + 1], max_new_tokens=12, **ways[how]))
        assert torch.equal(both, torch.cat(alone))


@pytest.mark.parametrize("beams", [1, 3])
def test_what_the_others_remember_changes_nothing(beams: int, model: nn.Module) -> None:
    ids = text(1, 20, seed=2).expand(2, -1)
    outs = []
    for other in (5, 6):
        with cmr.attach(model, **ALWAYS, refresh=3) as memory:
            texts = torch.stack([text(200, seed=1), text(200, seed=other)])
            memory.read(texts, sessions=["anna", "ben"])
            with memory.session("anna", "ben"):
                outs.append(greedy(model, ids, tokens=16, num_beams=beams))
    assert torch.equal(outs[0][0], outs[1][0])
    assert not torch.equal(outs[0][1], outs[1][1])


def test_one_session_for_all_rows(llama: nn.Module) -> None:
    ids = text(3, 20)
    with remembering(llama) as memory, memory.session("ben"):
        both = greedy(llama, ids)
        assert {p.session for row in memory.recalled for p in row} == {"ben"}
        assert torch.equal(both, torch.cat([greedy(llama, ids[row, None]) for row in range(3)]))


class _Collector(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def ways_of_generating(model: nn.Module, ids: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Ways that must give the tokens of greedy generation."""

    def streamed() -> torch.Tensor:
        streamer = _Collector()
        greedy(model, ids, streamer=streamer)
        assert streamer.ended
        return torch.tensor([streamer.ids[ids.shape[1] :]])

    def from_embeddings() -> torch.Tensor:
        embeds = model.get_input_embeddings()(ids)
        return model.generate(inputs_embeds=embeds, max_new_tokens=12, do_sample=False)[:, -12:]

    def by_name() -> torch.Tensor:
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        return out[:, ids.shape[1] :]

    return {
        "streamed": streamed,
        "by name": by_name,
        "from embeddings": from_embeddings,
        "without cache": lambda: greedy(model, ids, use_cache=False),
        "static cache": lambda: greedy(model, ids, cache_implementation="static"),
        "prompt lookup": lambda: greedy(model, ids, prompt_lookup_num_tokens=3),
    }


@pytest.mark.parametrize(
    "way",
    ["streamed", "by name", "from embeddings", "without cache", "static cache", "prompt lookup"],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_gives_the_tokens_of_greedy_generation(
    name: str, way: str, tiny: Callable[[str], nn.Module]
) -> None:
    """All of a short memory is read in each, so it is the same memory in each."""
    model, ids = tiny(name), text(1, 20)
    plain = greedy(model, ids)
    with cmr.attach(model, **{**ALWAYS, **READS_ALL, "sink_guard": 4}) as memory:
        memory.read(text(96, seed=1))
        want = greedy(model, ids)
        assert not torch.equal(want, plain)
        assert torch.equal(ways_of_generating(model, ids)[way](), want)
        searches = memory.stats()["searches"]
        assert searches > 1
    assert torch.equal(ways_of_generating(model, ids)[way](), plain)


def test_left_padded_rows_generate_with_a_static_cache(llama: nn.Module) -> None:
    batch = padded([text(9), text(20)], "left")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with cmr.attach(llama, **{**ALWAYS, **READS_ALL, "sink_guard": 4}) as memory:
        memory.read(text(2, 96, seed=1))
        want = greedy(llama, ids, attention_mask=mask)
        have = greedy(llama, ids, attention_mask=mask, cache_implementation="static")
    assert torch.equal(have, want)


def test_a_static_cache_that_is_used_again_forgets_what_it_read(llama: nn.Module) -> None:
    """Also for a single token, which looks like a decoding step."""
    one = text(1, 1, seed=9)
    with remembering(llama) as memory:
        cache = StaticCache(config=llama.config, max_cache_len=64)

        def owners(ids: torch.Tensor, name: str) -> set[str]:
            with memory.session(name):
                llama(ids, past_key_values=cache)
            return {passage.session for passage in memory.recalled[0]}

        assert owners(text(1, 20), "anna") == {"anna"}
        assert owners(one, "anna") == {"anna"}
        assert memory.stats()["searches"] == 1
        assert owners(one, "ben") == {"ben"}
        cache.reset()
        assert owners(one, "ben") == {"ben"}
        assert memory.stats()["searches"] == 3


def test_searches_come_once_in_refresh_steps(model: nn.Module) -> None:
    with remembering(model, refresh=8) as memory, memory.session("anna"):
        greedy(model, text(1, 20), tokens=40)
        assert memory.stats()["searches"] == 1 + 39 // 8


@pytest.mark.parametrize("case", ["nothing stored", "another session", "weight 0", "paused"])
def test_nothing_to_read_costs_nothing(case: str, model: nn.Module) -> None:
    """No search and no look-ahead: as many passes as without a memory."""
    weight = 0.0 if case == "weight 0" else 0.8
    passes = []
    with cmr.attach(model, **{**ALWAYS, "memory_weight": weight}) as memory:
        first = memory._core.adapter.layers[0]
        handle = first.register_forward_hook(lambda *_: passes.append(1))
        if case != "nothing stored":
            memory.read(text(200), sessions=["anna" if case == "another session" else "0"])
        if case == "paused":
            memory.pause()
        passes.clear()
        greedy(model, text(1, 20), tokens=10)
        assert (len(passes), memory.stats()["searches"]) == (10, 0)
        assert memory.recalled in ([], [[]])
        if case == "another session":
            passes.clear()
            with memory.session("anna"):
                greedy(model, text(1, 20), tokens=10)
            # Of the question ahead of its forward, and of random tokens before the first search.
            assert (len(passes), memory.stats()["searches"]) == (12, 1)
        handle.remove()


def test_recalled_tells_what_was_read(llama: nn.Module) -> None:
    class Words:
        def decode(self, ids: tuple[int, ...]) -> str:
            return " ".join(f"w{token}" for token in ids)

    stored = text(300, seed=1)
    with cmr.attach(llama, **ALWAYS, tokenizer=Words(), blocks=3, gain=0.0) as memory:
        assert memory.recalled == []
        memory.read(stored, sessions=["anna"])
        llama(text(1, 20))
        assert memory.recalled == [[]]
        with memory.session("anna"):
            llama(stored[None, 100:120])
        (row,) = memory.recalled
    assert 1 < len(row) <= 3
    assert [p.score for p in row] == sorted((p.score for p in row), reverse=True)
    for passage in row:
        assert passage.session == "anna"
        assert passage.token_ids == tuple(stored[passage.start : passage.end].tolist())
        assert passage.text == Words().decode(passage.token_ids)
        assert 0 < passage.gate < 1
    assert len({token for p in row for token in range(p.start, p.end)}) == sum(
        len(p.token_ids) for p in row
    ), "passages overlap"


def test_recalled_never_shows_what_took_the_place_of_what_was_read(llama: nn.Module) -> None:
    stored = text(128, seed=1)
    with cmr.attach(llama, **ALWAYS, budget=128) as memory:
        memory.read(stored, sessions=["anna"])
        with memory.session("anna"):
            llama(text(1, 20))
        before = memory.recalled
        assert before[0][0].session == "anna"
        memory.read(text(128, seed=2), sessions=["ben"])
        assert memory.recalled == before
        memory.clear("anna")
        assert memory.recalled == []
