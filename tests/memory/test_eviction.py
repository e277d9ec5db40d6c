"""Eviction against a plain Python model of it, and what it promises to the sessions."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.config import EVICTION_STRATEGIES
from cmr.memory.eviction import Candidates, choose_victims, keep_scores


@dataclasses.dataclass
class Block:
    owner: int
    created: int
    last_access: int = 0
    access_count: int = 0
    relevance: float = 0.5
    pinned: bool = False


def columns(blocks: list[Block]) -> Candidates:
    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(b, name) for b in blocks], dtype=dtype)

    whole = ("owner", "created", "last_access", "access_count")
    return Candidates(
        *(column(name, torch.int64) for name in whole),
        column("relevance", torch.float32),
        column("pinned", torch.bool),
    )


RELEVANCE = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]  # exact in float32, and often equal


@st.composite
def memories(draw: st.DrawFn) -> list[Block]:
    n = draw(st.integers(0, 30))
    created = draw(st.permutations(range(1, n + 1)))
    return [
        Block(
            owner=draw(st.integers(0, 4)),
            created=number,
            last_access=draw(st.sampled_from([0, 0, number, n // 2, n])),
            access_count=draw(st.integers(0, 3)),
            relevance=draw(st.sampled_from(RELEVANCE)),
            pinned=draw(st.integers(0, 5)) == 0,
        )
        for number in created
    ]


writings = st.dictionaries(st.integers(0, 6), st.integers(0, 8), max_size=4)
thresholds = st.sampled_from([None, 0.0, 0.25, 0.3, 1.0])


def worth(strategy: str, blocks: list[Block], i: int) -> float:
    def rank(value: float, values: list[float]) -> float:
        return sum(v < value for v in values) / max(len(values) - 1, 1)

    uses = [max(b.created, b.last_access) for b in blocks]
    relevance = [b.relevance for b in blocks]
    both = (rank(uses[i], uses) + rank(relevance[i], relevance)) / 2
    # A new strategy: what a block is worth, said a second time.
    return {
        "oldest": blocks[i].created,
        "lru": uses[i],
        "relevance": relevance[i],
        "lru_relevance": both,
    }[strategy]


def model(
    blocks: list[Block],
    need: int,
    strategy: str,
    threshold: float | None,
    capacity: int,
    incoming: dict[int, int],
) -> list[int]:
    """Block by block, and as the documentation says it."""
    by_worth = sorted(
        (i for i, b in enumerate(blocks) if not b.pinned),
        key=lambda i: (
            threshold is None or blocks[i].relevance >= threshold,
            worth(strategy, blocks, i),
            blocks[i].created,
        ),
    )
    holds = Counter(b.owner for b in blocks)
    writes = {s: n for s, n in incoming.items() if n}
    share = capacity // max(len(holds.keys() | writes.keys()), 1)
    over = {s: max(0, holds[s] + writes.get(s, 0) - share) for s in holds}
    given: Counter[int] = Counter()
    chosen: list[int] = []
    for limit in (
        lambda s: min(over[s], writes.get(s, 0)),
        lambda s: over[s],
        lambda s: len(blocks) if s in writes else 0,
    ):
        for i in by_worth:
            owner = blocks[i].owner
            if i not in chosen and given[owner] < limit(owner):
                chosen.append(i)
                given[owner] += 1
    return chosen[:need]


@settings(max_examples=200, deadline=None)
@given(
    memories(),
    st.integers(0, 35),
    st.sampled_from(EVICTION_STRATEGIES),
    thresholds,
    st.integers(1, 40),
    writings,
)
def test_it_is_the_plain_model(
    blocks: list[Block],
    need: int,
    strategy: str,
    threshold: float | None,
    capacity: int,
    incoming: dict[int, int],
) -> None:
    rule = {"strategy": strategy, "threshold": threshold, "capacity": capacity}
    c = columns(blocks)
    victims = choose_victims(c, need, **rule, incoming=incoming)
    expected = model(blocks, need, strategy, threshold, capacity, incoming)
    assert (victims.dtype, victims.tolist()) == (torch.int64, expected)
    assert torch.equal(victims, choose_victims(c, need, **rule, incoming=incoming))


@settings(max_examples=150, deadline=None)
@given(memories(), st.integers(0, 12), st.sampled_from(EVICTION_STRATEGIES), thresholds, writings)
def test_a_full_memory_makes_room_and_nobody_is_pushed_below_the_share(
    blocks: list[Block],
    slack: int,
    strategy: str,
    threshold: float | None,
    incoming: dict[int, int],
) -> None:
    for block in blocks:
        block.pinned = False
    capacity = max(len(blocks), 1) + slack
    holds = Counter(b.owner for b in blocks)
    share = capacity // max(len(holds.keys() | {s for s, n in incoming.items() if n}), 1)
    # As the documentation says: nobody writes more than the share at once.
    incoming = {s: min(n, share) for s, n in incoming.items()}
    need = max(0, len(blocks) + sum(incoming.values()) - capacity)
    victims = choose_victims(
        columns(blocks),
        need,
        strategy=strategy,
        threshold=threshold,
        capacity=capacity,
        incoming=incoming,
    ).tolist()
    assert len(set(victims)) == len(victims) == need
    gone = Counter(blocks[i].owner for i in victims)
    for session, before in holds.items():
        after = before - gone[session] + incoming.get(session, 0)
        assert after >= min(share, before + incoming.get(session, 0))
    for session, count in incoming.items():
        if holds[session] >= share and need >= sum(incoming.values()):
            assert gone[session] >= count


@settings(max_examples=200, deadline=None)
@given(memories(), st.sampled_from(EVICTION_STRATEGIES), thresholds, st.data())
def test_what_is_needed_less_is_needed_first_and_worth_more_goes_later(
    blocks: list[Block], strategy: str, threshold: float | None, data: st.DataObject
) -> None:
    incoming = data.draw(writings)
    rule = {"strategy": strategy, "threshold": threshold, "incoming": incoming}
    rule["capacity"] = data.draw(st.integers(1, 30))
    every = choose_victims(columns(blocks), 99, **rule).tolist()
    need = data.draw(st.integers(0, 31))
    assert choose_victims(columns(blocks), need, **rule).tolist() == every[:need]
    if not every:
        return
    chosen = data.draw(st.sampled_from(every))

    def turn_among_its_own(order: list[int]) -> int:
        return [i for i in order if blocks[i].owner == blocks[chosen].owner].index(chosen)

    before = turn_among_its_own(every)
    block = blocks[chosen]
    block.relevance = max(block.relevance, data.draw(st.sampled_from(RELEVANCE)))
    block.last_access += data.draw(st.integers(0, 9))
    after = choose_victims(columns(blocks), 99, **rule).tolist()
    assert chosen not in after or turn_among_its_own(after) >= before


def test_what_is_below_the_threshold_goes_first_whatever_the_strategy() -> None:
    c = columns([Block(0, n, relevance=r) for n, r in ((1, 0.9), (2, 0.4), (3, 0.1), (4, 0.6))])
    for strategy in EVICTION_STRATEGIES:
        worth = keep_scores(strategy, c, 0.5)
        assert worth[[1, 2]].max() < worth[[0, 3]].min(), strategy
    goes = choose_victims(c, 4, strategy="oldest", threshold=0.5, capacity=1, incoming={0: 4})
    assert goes.tolist() == [1, 2, 0, 3]


def test_one_session_alone_uses_everything_and_gives_way_to_a_second_one() -> None:
    c = columns([Block(7, n) for n in range(1, 9)])
    rule = {"strategy": "lru", "capacity": 8}
    assert choose_victims(c, 2, **rule, incoming={7: 2}).tolist() == [0, 1]
    assert choose_victims(c, 4, **rule, incoming={9: 4}).tolist() == [0, 1, 2, 3]
    # The second one cannot have more than its half at once.
    assert choose_victims(c, 6, **rule, incoming={9: 6}).tolist() == [0, 1, 2, 3]


def test_a_session_over_its_share_pays_although_another_holds_older_blocks() -> None:
    blocks = [Block(1, n) for n in range(1, 6)] + [Block(2, n) for n in range(6, 10)]
    rule = {"strategy": "oldest", "capacity": 9}  # a share of 4, or 3 for three sessions
    assert choose_victims(columns(blocks), 2, **rule, incoming={2: 2}).tolist() == [5, 6]
    assert choose_victims(columns(blocks), 3, **rule, incoming={3: 3}).tolist() == [0, 1, 5]


def test_nobody_pays_for_one_who_pinned_too_much() -> None:
    blocks = [Block(1, n, pinned=True) for n in range(1, 7)] + [Block(2, 7), Block(2, 8)]
    rule = {"strategy": "lru_relevance", "capacity": 8}
    assert choose_victims(columns(blocks), 1, **rule, incoming={1: 1}).tolist() == []
    assert choose_victims(columns(blocks), 1, **rule, incoming={2: 1}).tolist() == [6]


def test_what_was_never_scored_counts_as_least_relevant() -> None:
    c = columns([Block(0, 1, relevance=0.2), Block(0, 2, relevance=float("nan"))])
    for strategy in ("relevance", "oldest"):
        goes = choose_victims(c, 1, strategy=strategy, threshold=0.1, capacity=2, incoming={0: 1})
        assert goes.tolist() == [1]


def test_bad_input_is_refused() -> None:
    c = columns([Block(0, 1)])
    rule = {"strategy": "lru", "capacity": 1, "incoming": {0: 1}}
    with pytest.raises(ValueError, match=r"strategy: one of oldest, .* expected, got 'newest'"):
        choose_victims(c, 1, **{**rule, "strategy": "newest"})
    with pytest.raises(ValueError, match="need: 0 or more blocks expected, got -1"):
        choose_victims(c, -1, **rule)
    with pytest.raises(ValueError, match="capacity: 1 or more blocks expected, got 0"):
        choose_victims(c, 1, **{**rule, "capacity": 0})
    with pytest.raises(ValueError, match=r"incoming: 0 or more .* got \{0: -2\}"):
        choose_victims(c, 1, **{**rule, "incoming": {0: -2}})
