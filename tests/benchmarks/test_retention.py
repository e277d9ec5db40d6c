"""The simulated store: what is known in advance comes out."""

from __future__ import annotations

import torch

from benchmarks.retention.relevance import PIECE, calibrated, pair_novelty, state_novelty
from benchmarks.retention.scores import BLOCK
from benchmarks.retention.store import NEAREST, main_block, questions, simulate
from benchmarks.texts.stream import Place

TOKENS, SLOTS = PIECE * 40, 96


def places(count: int = 60) -> list[Place]:
    step = TOKENS // count
    return [Place("named", i * step + 7, i * step + 30) for i in range(count)]


def test_the_oldest_leaves_after_as_many_tokens_as_fit() -> None:
    asked = questions(places(), TOKENS, 0)
    none = torch.full((TOKENS // BLOCK,), 0.5)
    found = simulate("oldest", none, asked, SLOTS, 0)
    for question, there in zip(asked, found, strict=True):
        read = -(-question.time // PIECE) * PIECE // BLOCK  # blocks, whole pieces of them
        assert there == (question.block >= read - SLOTS)
    assert 0 < sum(found) < len(found)


def test_what_is_asked_for_stays_when_relevance_knows_it() -> None:
    asked = questions(places(), TOKENS, 0)
    oracle = torch.full((TOKENS // BLOCK,), 0.2)
    oracle[[question.block for question in asked]] = 0.9
    assert all(simulate("relevance", oracle, asked, SLOTS, 0))
    assert all(simulate("relevance", oracle, asked, SLOTS, 0, recent=SLOTS // 4))
    assert not all(simulate("relevance", 1 - oracle, asked, SLOTS, 0))


def test_questions_are_the_same_for_a_seed_and_come_behind_the_window() -> None:
    one, other = questions(places(), TOKENS, 3), questions(places(), TOKENS, 4)
    assert one == questions(places(), TOKENS, 3) != other
    assert [q.time for q in one] == sorted(q.time for q in one)
    assert all(q.distance >= NEAREST and q.time < TOKENS for q in one)
    assert any(q.repeat for q in one)


def test_a_place_belongs_to_the_block_that_holds_most_of_it() -> None:
    assert main_block(Place("named", 30, 40)) == 1
    assert main_block(Place("named", 20, 40)) == 0
    assert main_block(Place("named", 24, 40)) == 0  # eight tokens each: the first


def test_what_stood_before_is_not_new() -> None:
    ids = [*range(BLOCK), *range(BLOCK), *range(500, 500 + BLOCK)]
    assert pair_novelty(ids).tolist()[0] == 1.0 == pair_novelty(ids).tolist()[2]
    assert pair_novelty(ids).tolist()[1] < 0.05
    states = torch.randn(4, 16)
    again = torch.cat([states, states[2:3]])
    found = state_novelty(again)
    assert found[0] == 2.0  # nothing stood before it
    assert found[4] < 1e-3 < 0.1 < found[1:4].min()
    levels = calibrated(torch.arange(48.0))
    assert levels[-1] > 0.95
