"""A search among many users' blocks looks at those of its own sessions, and finds the same."""

from __future__ import annotations

import pytest
import torch

from cmr.config import RetrievalConfig
from cmr.kernels.maxsim import block_maxima
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval import Choice, Retriever, RollingQuery, own_slots
from tests.kernels.helpers.compare import assert_close
from tests.memory.kept import KeptStore
from tests.retrieval.spoken import Words
from tests.retrieval.stored import HIDDEN, WORDS, question, store_of, write

USERS, EACH = 40, 8
SESSIONS = [3, 17, 3, 39]


@pytest.fixture
def store() -> KeptStore:
    found = store_of(USERS * EACH)
    # Turn by turn: nobody's blocks lie side by side, but for the last user's.
    for _ in range(EACH):
        write(found, list(range(USERS - 1)))
    write(found, [USERS - 1] * EACH)
    return found


@pytest.fixture(params=["states", "words"])
def retriever(request) -> Retriever:
    words = Words("<end>")
    words.ids(". " + " ".join(f"word{number}" for number in range(WORDS)))
    config = RetrievalConfig(threshold=0.0, blocks=3)
    return Retriever(config, vocabulary=words.vocabulary() if request.param == "words" else None)


def assert_same(have: Choice, want: Choice) -> None:
    assert torch.equal(have.table, want.table) and torch.equal(have.stamps, want.stamps)
    assert_close("scores", have.scores, want.scores, 1e-4, 1e-4)
    assert_close("certainty", have.certainty, want.certainty, 1e-4, 1e-4)
    assert (have.within is None) == (want.within is None)
    assert have.within is None or torch.equal(have.within, want.within)


@pytest.mark.parametrize("before", [None, [3, 30, 9, 12]])
def test_it_finds_what_a_whole_search_finds(store, retriever, monkeypatch, before) -> None:
    ask = question(SESSIONS, 6, before=None if before is None else torch.tensor(before))
    have = retriever.search(ask, store)
    assert bool((have.table >= 0).any(-1).any(-1).all()) or before is not None
    monkeypatch.setattr(own_slots, "LEAST", store.slots + 1)
    assert_same(have, retriever.search(question(SESSIONS, 6, **vars_of(ask)), store))


def vars_of(ask) -> dict:
    return {name: getattr(ask, name) for name in ("states", "token_ids", "heads", "before")}


def test_a_query_that_grows_finds_the_same(store, retriever, monkeypatch) -> None:
    numbers, states = torch.tensor(SESSIONS), torch.randn(len(SESSIONS), 9, HIDDEN)
    ids = torch.randint(WORDS, (len(SESSIONS), 9))
    found = []
    for least in (own_slots.LEAST, store.slots + 1):
        monkeypatch.setattr(own_slots, "LEAST", least)
        query = RollingQuery(len(SESSIONS), 6, store, numbers, narrows=True)
        for part in (slice(0, 4), slice(4, 9)):
            query.add(states[:, part], None, ids[:, part])
            found.append(Choice(*(None if x is None else x.clone()
                                  for x in retriever.search_again(query, store))))  # fmt: skip
    assert_same(found[0], found[2])
    assert_same(found[1], found[3])


def test_nothing_of_the_others_is_compared(store, retriever, monkeypatch) -> None:
    real, seen = store.maxima_at, set()

    def noted(query, sessions, slots):
        seen.update(store.session[slots].flatten().tolist())
        return real(query, sessions, slots)

    monkeypatch.setattr(store, "maxima_at", noted)
    monkeypatch.setattr(store, "maxima", lambda *_: pytest.fail("the whole store was compared"))
    retriever.search(question(SESSIONS, 6), store)
    assert seen == set(SESSIONS)


def test_a_row_without_a_session_finds_nothing(store, retriever) -> None:
    store.clear(5)
    have = retriever.search(question([3, NO_SESSION, 5], 6), store)
    assert bool((have.table[0] >= 0).any()) and bool((have.table[1:] < 0).all())


@pytest.mark.parametrize("sessions", [[2, 7], [2, 2, 7], [2, NO_SESSION], [50]])
def test_maxima_of_own_blocks_are_those_of_a_whole_comparison(sessions) -> None:
    owner = torch.tensor([2, 7, 1, 2, 0, 0, 7, 7, 7, 0, 1, 1, 1, 0, 0, 0])
    index, query = torch.randn(len(owner), 4, 8), torch.randn(len(sessions), 3, 8)
    asking = torch.tensor(sessions)
    mine = (owner == asking[:, None])[:, None]
    want = block_maxima(query, index).masked_fill(~mine, float("-inf"))
    out = torch.empty(len(sessions), 3, 2 * len(owner))[..., ::2]
    have = block_maxima(query, index, session=owner, sessions=asking, out=out)
    assert_close("maxima", have, want, 1e-5, 1e-5)
