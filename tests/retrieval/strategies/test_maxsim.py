"""The search over a ring buffer: whose blocks it finds, and which."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.config import RetrievalConfig
from cmr.memory import BlockBatch
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval import Ask, Choice, Retriever
from tests.memory.kept import KeptStore

BLOCK, HIDDEN = 4, 32


def ring(slots: int) -> KeptStore:
    return KeptStore(
        slots=slots,
        block_size=BLOCK,
        hidden=HIDDEN,
        layers={},
        index_dtype=torch.float32,
        device=torch.device("cpu"),
    )


def write(store: KeptStore, sessions: list[int], states: torch.Tensor | None = None) -> None:
    """Blocks of random states `[n, BLOCK, HIDDEN]` for the given sessions."""
    n = len(sessions)
    states = torch.randn(n, BLOCK, HIDDEN) if states is None else states
    places = torch.arange(n * BLOCK).view(n, BLOCK)
    store.write(BlockBatch(sessions, places, places, states, {}))


def retriever(**settings: object) -> Retriever:
    return Retriever(RetrievalConfig(**{"threshold": 0.0, "gain": 0.0, **settings}))


def search(
    store: KeptStore, query: torch.Tensor, sessions: list[int], **settings: object
) -> Choice:
    mask = settings.pop("query_mask", None)
    before = settings.pop("before", None)
    ask = Ask(query, mask, torch.tensor(sessions), before=before)
    return retriever(**settings).search(ask, store)


def test_the_passage_that_was_asked_for_comes_first() -> None:
    store = ring(40)
    write(store, [0] * 40)
    for asked in (0, 1, 17, 38, 39):
        query = store.index[asked][None]
        table = search(store, query, [0], neighbours=0).table
        assert asked in table[0, 0].tolist()
        wider = search(store, query, [0], neighbours=2).table
        around = {slot for slot in range(asked - 2, asked + 3) if 0 <= slot < 40}
        assert around <= set(wider[0, 0].tolist())


def test_rows_of_a_batch_search_for_themselves() -> None:
    store = ring(40)
    write(store, [0] * 20 + [1] * 20)
    query = torch.stack([store.index[5], store.index[30], store.index[30]])
    both = search(store, query, [0, 1, 0])
    for row, session in enumerate([0, 1, 0]):
        alone = search(store, query[row : row + 1], [session])
        assert torch.equal(both.table[row], alone.table[0])
        assert torch.equal(both.scores[row], alone.scores[0])
        assert torch.equal(both.certainty[row], alone.certainty[0])
    assert 5 in both.table[0] and 30 in both.table[1] and 30 not in both.table[2]


def test_padding_asks_for_nothing() -> None:
    store = ring(40)
    write(store, [0] * 40)
    query = torch.cat([store.index[30], store.index[3]])[None]
    mask = torch.tensor([[False] * BLOCK + [True] * BLOCK])
    have = search(store, query, [0], query_mask=mask, blocks=1)
    want = search(store, query[:, BLOCK:], [0], blocks=1)
    assert torch.equal(have.table, want.table) and 3 in have.table
    assert (search(store, query, [0], query_mask=torch.zeros_like(mask)).table == -1).all()


def test_empty_stores_and_strangers_find_nothing() -> None:
    store, query = ring(8), torch.randn(2, 5, HIDDEN)
    for sessions in ([0, 1], [NO_SESSION, NO_SESSION]):
        choice = search(store, query, sessions)
        assert (choice.table == -1).all() and (choice.certainty == 0).all()
    write(store, [3] * 4)
    store.clear(3)
    for sessions in ([0, 3], [NO_SESSION, 3]):
        choice = search(store, query, sessions)
        assert (choice.table == -1).all() and (choice.certainty == 0).all()


def test_a_threshold_above_the_certainty_recalls_nothing() -> None:
    store = ring(40)
    write(store, [0] * 40)
    query = store.index[7][None]
    sure = float(search(store, query, [0]).certainty)
    assert (search(store, query, [0], threshold=sure + 0.01).table == -1).all()
    assert 7 in search(store, query, [0], threshold=sure - 0.01).table


def test_ratio_decides_how_many_passages_are_read() -> None:
    store = ring(40)
    write(store, [0] * 40)
    query = store.index[7][None]
    counts = [
        int((search(store, query, [0], blocks=4, gain=1.0, ratio=ratio).table >= 0).any(-1).sum())
        for ratio in (0.0, 1.0)
    ]
    assert counts == [4, 1]


def test_the_same_search_gives_bitwise_the_same_choice() -> None:
    store = ring(30)
    write(store, [0] * 30)
    query = torch.randn(1, 9, HIDDEN)
    first = search(store, query, [0], blocks=4, ratio=0.0)
    for _ in range(5):
        again = search(store, query, [0], blocks=4, ratio=0.0)
        assert torch.equal(first.table, again.table) and torch.equal(first.scores, again.scores)


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 12),
    history=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=8),
    ended=st.integers(-1, 3),
    blocks=st.integers(1, 4),
    neighbours=st.integers(0, 3),
)
def test_a_row_only_ever_sees_its_own_session(
    slots: int, history: list[list[int]], ended: int, blocks: int, neighbours: int
) -> None:
    """Whatever was written, overwritten and cleared; the other sessions hold what is asked for."""
    store = ring(slots)
    secret = F.normalize(torch.randn(4, BLOCK, HIDDEN), dim=-1)
    for sessions in history:
        sessions = sessions[:slots]
        write(store, sessions, secret[sessions] + 0.01 * torch.randn(len(sessions), BLOCK, HIDDEN))
    if ended >= 0:
        store.clear(ended)
    rows = [0, 1, 2, 3, NO_SESSION]
    query = torch.cat([secret.flatten(0, 1)] * 5).view(5, -1, HIDDEN)
    choice = search(store, query, rows, blocks=blocks, neighbours=neighbours, ratio=0.0)
    for row, session in enumerate(rows):
        read = choice.table[row][choice.table[row] >= 0]
        assert (store.session[read] == session).all()
        assert session != NO_SESSION or not len(read)


def test_a_choice_follows_its_rows() -> None:
    table = torch.arange(12).view(3, 2, 2)
    within = torch.arange(12).view(3, 2, 2) + 50
    choice = Choice(table, table + 100, torch.rand(3, 2), torch.rand(3), within, within[..., 0])
    other = choice.select(torch.tensor([2, 0, 0]))
    for name in Choice._fields:
        assert torch.equal(getattr(other, name), getattr(choice, name)[[2, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_index_may_be_of_another_dtype_than_the_query(dtype: torch.dtype) -> None:
    store = KeptStore(
        slots=20, block_size=BLOCK, hidden=HIDDEN, layers={}, index_dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )  # fmt: skip
    write(store, [0] * 20)
    assert 11 in search(store, store.index[11][None].to(dtype), [0]).table
