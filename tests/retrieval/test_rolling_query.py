"""A query that grows finds what a search from the start finds, and compares nothing twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.retrieval import Ask, RollingQuery
from tests.kernels.helpers.compare import assert_close
from tests.retrieval.strategies.test_maxsim import HIDDEN, retriever, ring, write

TOKENS = 6


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 7), st.booleans()), min_size=1, max_size=6
    ),
    seed=st.integers(0, 99),
)
def test_it_finds_what_a_whole_search_finds(steps, seed) -> None:
    torch.manual_seed(seed)
    store, sessions = ring(20), torch.tensor([0, 1])
    write(store, [0, 1] * 6)
    find, rolling = retriever(blocks=3, neighbours=1), RollingQuery(2, TOKENS, store, sessions)
    text, asks = torch.zeros(2, 0, HIDDEN), torch.zeros(2, 0, dtype=torch.bool)
    for tokens, blocks, ends in steps:
        states, mask = torch.randn(2, tokens, HIDDEN), torch.rand(2, tokens) > 0.3
        if ends:
            store.clear(1)
        write(store, [0, 1, 1, 0, 0, 1, 1][:blocks])
        text = torch.cat([text, states], 1)[:, -TOKENS:]
        asks = torch.cat([asks, mask], 1)[:, -TOKENS:]
        rolling.add(states, mask)
        have = find.search_again(rolling, store)
        want = find.search(Ask(text, asks, sessions), store)
        assert torch.equal(have.table, want.table) and torch.equal(have.stamps, want.stamps)
        assert_close("scores", have.scores, want.scores, 1e-4, 1e-4)
        assert_close("certainty", have.certainty, want.certainty, 1e-4, 1e-4)


def test_only_what_is_new_is_compared(monkeypatch) -> None:
    store, sessions = ring(50), torch.tensor([0])
    write(store, [0] * 30)
    rolling = RollingQuery(1, 32, store, sessions)
    rolling.add(torch.randn(1, 32, HIDDEN), None)
    compared = []

    def noted(query, sessions, first, last, out=None):
        compared.append((query.shape[1], last - first))
        return real(query, sessions, first, last, out)

    real = store.maxima
    monkeypatch.setattr(store, "maxima", noted)
    rolling.add(torch.randn(1, 1, HIDDEN), None)
    assert compared == [(1, 30)]
    compared.clear()
    write(store, [0] * 2)
    rolling.add(torch.randn(1, 1, HIDDEN), None)
    assert sorted(compared) == [(1, 32), (32, 2)]


def test_rows_follow_their_beams() -> None:
    store, sessions = ring(20), torch.tensor([0, 0, 0])
    write(store, [0] * 20)
    find, rolling = retriever(), RollingQuery(3, 4, store, sessions)
    states = torch.randn(3, 4, HIDDEN)
    rolling.add(states, None)
    rows = torch.tensor([2, 0, 0])
    rolling.reorder(rows)
    have = find.search_again(rolling, store)
    want = find.search(Ask(states[rows], None, sessions), store)
    assert torch.equal(have.table, want.table)


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_next_search_writes_where_the_last_one_did(tokens: int) -> None:
    store = ring(20)
    write(store, [0] * 9)
    find, rolling = retriever(), RollingQuery(1, 4, store, torch.tensor([0]))
    places = set()
    for _ in range(3):
        rolling.add(torch.randn(1, tokens, HIDDEN), None)
        places.add(find.search_again(rolling, store).table.data_ptr())
        write(store, [0] * 3)
    assert len(places) == 1
