"""A cached answer is the answer that a search would give now, or it is not given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.errors import ConfigError
from cmr.retrieval.ask import Ask
from cmr.retrieval.cache import RetrievalCache, key_of, version_of
from tests.retrieval.strategies.test_maxsim import HIDDEN, retriever, ring, write

ANSWER = (torch.arange(3), torch.rand(3))


def ask(**changed: object) -> Ask:
    given = Ask(
        states=torch.ones(1, 2, HIDDEN),
        mask=torch.tensor([[True, True]]),
        sessions=torch.tensor([0]),
        token_ids=torch.tensor([[5, 6]]),
        before=torch.tensor([9]),
        task="code",
    )
    return replace(given, **changed)


DIFFERENT = {
    "states": ask(states=torch.full((1, 2, HIDDEN), 1 + 1e-6)),
    "dtype of the states": ask(states=torch.ones(1, 2, HIDDEN, dtype=torch.float64)),
    "shape of the states": ask(states=torch.ones(2, 1, HIDDEN)),
    "sign of a zero": ask(states=-torch.zeros(1, 2, HIDDEN)),
    "mask": ask(mask=torch.tensor([[True, False]])),
    "no mask": ask(mask=None),
    "sessions": ask(sessions=torch.tensor([1])),
    "token ids": ask(token_ids=torch.tensor([[5, 7]])),
    "no token ids": ask(token_ids=None),
    "before": ask(before=torch.tensor([8])),
    "no before": ask(before=None),
    "task": ask(task=None),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_question_has_another_key(what: str) -> None:
    keys = {key_of(ask(), "maxsim", 2), key_of(DIFFERENT[what], "maxsim", 2)}
    assert len(keys) == 2
    assert key_of(ask(), "maxsim", 2) in keys


def test_other_settings_have_another_key() -> None:
    assert len({key_of(ask(), *s) for s in (("maxsim", 2), ("maxsim", 3), ("other", 2), ())}) == 4


def test_an_empty_question_has_a_key() -> None:
    empty = ask(states=torch.empty(1, 0, HIDDEN), mask=torch.empty(1, 0, dtype=torch.bool))
    assert key_of(empty) == key_of(empty) != key_of(ask())


def test_the_one_used_longest_ago_makes_room() -> None:
    cache = RetrievalCache(2)
    for key in (b"a", b"b"):
        cache.put(key, 0, ANSWER)
    assert cache.get(b"a", 0) is not None
    cache.put(b"c", 0, ANSWER)
    assert cache.get(b"b", 0) is None
    assert cache.get(b"a", 0) is not None and cache.get(b"c", 0) is not None
    assert cache.stats() == {
        "entries": 2, "size": 2, "hits": 3, "misses": 1, "invalidations": 0, "evictions": 1,
        "hit_rate": 0.75,
    }  # fmt: skip


def test_answers_are_copies() -> None:
    cache, given = RetrievalCache(1), torch.arange(3)
    cache.put(b"a", 0, (given,))
    given.fill_(7)
    for _ in range(2):
        (have,) = cache.get(b"a", 0)
        assert have.tolist() == [0, 1, 2]
        have.fill_(9)


def test_size_0_is_off() -> None:
    cache = RetrievalCache(0)
    cache.put(b"a", 0, ANSWER)
    assert cache.get(b"a", 0) is None and len(cache) == 0
    assert set(cache.stats().values()) == {0, None}


@pytest.mark.parametrize("size", [-1, 1.5, True, None])
def test_a_bad_size_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="cache_size: an integer of at least 0 expected"):
        RetrievalCache(size)  # type: ignore[arg-type]


def test_a_change_drops_everything_at_the_next_use() -> None:
    store, cache = ring(20), RetrievalCache(5)
    write(store, [0, 1] * 3)
    changes = {
        "write": lambda: write(store, [1]),
        "tick": store.tick,
        "clear a session": lambda: store.clear(1),
        "move": lambda: store.move(torch.tensor([0]), store.take(0, 1)),
        "hand over": lambda: store.hand_over(store.ledger.slots_of(0), 2, 0),
        "clear": store.clear,
    }
    for what, change in changes.items():
        for key in (b"a", b"b"):
            cache.put(key, version_of(store), ANSWER)
        change()
        before = cache.stats()["invalidations"]
        assert cache.get(b"a", version_of(store)) is None, what
        assert len(cache) == 0 and cache.stats()["invalidations"] == before + 2, what


def test_forgetting_drops_everything_at_once() -> None:
    cache = RetrievalCache(5)
    cache.put(b"a", 0, ANSWER)
    assert cache.forget() == 1 and len(cache) == 0
    assert cache.get(b"a", 0) is None
    assert cache.stats()["invalidations"] == 1


def test_an_answer_to_an_older_store_is_not_given() -> None:
    """The store changed while the search ran."""
    cache = RetrievalCache(5)
    cache.put(b"a", 1, ANSWER)
    cache.get(b"b", 2)
    cache.put(b"b", 1, ANSWER)
    assert cache.get(b"b", 2) is None


STEPS = st.one_of(
    st.tuples(st.just("write"), st.lists(st.integers(0, 2), min_size=1, max_size=3)),
    st.tuples(st.just("clear"), st.integers(0, 2)),
    st.tuples(st.just("tick"), st.none()),
    st.tuples(st.just("ask"), st.tuples(st.integers(0, 2), st.integers(0, 2))),
)


@settings(max_examples=35, deadline=None)
@given(steps=st.lists(STEPS, min_size=5, max_size=30), size=st.integers(0, 3))
def test_cached_answers_equal_searches(steps: list[tuple[str, object]], size: int) -> None:
    torch.manual_seed(0)
    store, cache, find = ring(6), RetrievalCache(size), retriever(ratio=0.0)
    questions, asked, put = torch.randn(3, 1, 2, HIDDEN), 0, 0
    for what, of in steps:
        if what == "write":
            write(store, of)
        elif what == "clear":
            store.clear(of)
        elif what == "tick":
            store.tick()
        else:
            question, session = of
            sessions = torch.tensor([session])
            found = find.search(Ask(questions[question], None, sessions), store)
            want = (found.table, found.stamps, found.scores, found.certainty)
            key = key_of(Ask(questions[question], None, sessions), "maxsim")
            have = cache.get(key, version_of(store))
            asked += 1
            if have is None:
                cache.put(key, version_of(store), want)
                put += 1
            else:
                assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
    stats = cache.stats()
    assert len(cache) == stats["entries"] <= size
    if size:
        assert stats["hits"] + stats["misses"] == asked and stats["misses"] == put
        assert stats["entries"] + stats["evictions"] + stats["invalidations"] == put
