"""Every strategy finds what it is for, by its name, and never what is another session's."""

from __future__ import annotations

import gc
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.config import STRATEGIES, RetrievalConfig
from cmr.errors import ConfigError
from cmr.kernels.reference.select import SearchColumns, may_see
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval import Calibration, Retriever
from cmr.retrieval.ask import Ask, Scored, Searched, columns_of, visible
from cmr.retrieval.selection import TUNED, rule_for, values_of
from cmr.retrieval.strategies.hierarchical import Hierarchical
from cmr.retrieval.strategies.lexical import LexicalOverlap
from cmr.retrieval.strategies.registry import Parts, make_strategy, register_strategy
from cmr.retrieval.strategies.semantic import Semantic
from tests.kernels.helpers.compare import assert_close
from tests.retrieval.stored import BLOCK, HIDDEN, LAYER, WORDS, question, store_of, write

MODEL = Calibration("tiny", "-", 1, heads=((LAYER, 0), (LAYER, 3), (9, 1)), question_null=(2.0, 0))


def parts(name: str = "maxsim", calibration: Calibration | None = MODEL, **more) -> Parts:
    return Parts(RetrievalConfig(strategy=name, **more), calibration)


# -- semantic, and the rules ----------------------------------------------------------------------


@pytest.mark.parametrize("located", [False, True])
def test_semantic_ranks_as_the_fused_search_does(located: bool) -> None:
    store = store_of(40)
    write(store, [0] * 25 + [1] * 15)
    asked = store.index[[7, 33], :3] + 0.1 * torch.randn(2, 3, HIDDEN)
    ask = question([0, 1], states=asked, located=located)
    have = Semantic(MODEL).score(ask, store)
    config = RetrievalConfig(blocks=1, neighbours=0, threshold=0.0, gain=0.0)
    want = Retriever(config, MODEL).search(ask, store)
    assert torch.equal(have.passages.argmax(-1), want.table[:, 0, 0])
    assert_close("scores", have.passages.amax(-1), want.scores[:, 0], 1e-5, 1e-5)
    assert have.certainty is not None
    assert_close("certainty", have.certainty, want.certainty, 1e-5, 1e-5)


def test_a_located_question_weighs_its_words_otherwise() -> None:
    assert rule_for(False) == TUNED and rule_for(True).peak_power == 1
    config = RetrievalConfig(threshold=0.4, neighbours=3)
    rule = rule_for(True, MODEL, config)
    assert (rule.threshold, rule.neighbours) == (0.4, 3)
    assert (rule.null_base, rule.null_slope) == (2.0, 0)
    assert rule_for(False, MODEL, config).null_base == MODEL.text_null[0]


# -- lexical --------------------------------------------------------------------------------------


def bm25(asked: list[int], texts: list[list[int]]) -> list[float]:
    """Robertson and Zaragoza (2009), equation 3.15 with b = 0, k1 = 1.2, token by token."""
    scores = [0.0] * len(texts)
    for token in set(asked):
        holding = sum(token in text for text in texts)
        rarity = math.log((len(texts) - holding + 0.5) / (holding + 0.5) + 1)
        for i, text in enumerate(texts):
            count = Counter(text)[token]
            scores[i] += rarity * count * 2.2 / (count + 1.2)
    return scores


def test_lexical_is_bm25_over_the_rows_own_passages() -> None:
    store = store_of(30)
    write(store, [0] * 12)
    write(store, [1] * 9)
    write(store, [0] * 6)
    ask = question([0, 1], tokens=9, mask=torch.arange(9) < torch.tensor([[9], [5]]))
    have = LexicalOverlap().score(ask, store).passages
    for row, own in enumerate([[*range(12), *range(21, 27)], list(range(12, 21))]):
        blocks = [store.token_ids[slot].tolist() for slot in own]
        texts = [block + after for block, after in zip(blocks, [*blocks[1:], []], strict=True)]
        asked = ask.token_ids[row][ask.mask[row]].tolist()
        assert have[row, own].tolist() == pytest.approx(bm25(asked, texts), abs=1e-4)
        assert (have[row].isfinite().nonzero()[:, 0] == torch.tensor(own)).all()


def test_padding_says_no_word_and_matches_none() -> None:
    store = store_of(8)
    ids = torch.full((4, BLOCK), 7)
    write(store, [0] * 4, ids=ids)
    store.positions[1] = -1  # padding: its token ids mean nothing
    store.successor[:] = -1
    have = LexicalOverlap().score(question([0], token_ids=torch.tensor([[7, -1, -1]])), store)
    assert have.passages[0, 1] == 0 and (have.passages[0, [0, 2, 3]] > 0).all()
    unknown = LexicalOverlap().score(question([0], token_ids=None), store)
    assert (unknown.passages[0] == 0).all()


def test_what_comes_later_counts_for_no_passage() -> None:
    store = store_of(8)
    write(store, [0] * 4, ids=torch.arange(4 * BLOCK).view(4, BLOCK))
    ask = question([0], token_ids=torch.tensor([[8, 1, 9]]), before=torch.tensor([2 * BLOCK]))
    have = LexicalOverlap().score(ask, store).passages[0]
    assert have[0] > 0  # holds token 1
    assert have[1] == 0  # its successor would hold 8 and 9, but stands behind
    assert (have[2:] == -torch.inf).all()


# -- hierarchical ---------------------------------------------------------------------------------


def test_hierarchical_scores_as_the_semantic_search_where_it_looks() -> None:
    store = store_of(600, keys=False)
    write(store, [0] * 400 + [1] * 200)
    ask = question([0, 1], states=store.index[[50, 450], :3])
    strategy = Hierarchical(exact_below=64, background=False, sample=10_000)
    have, want = strategy.score(ask, store), Semantic().score(ask, store)
    found = have.passages.isfinite()
    assert strategy.hierarchy(store).clusters > 1
    assert 0 < int(found.sum()) < int(want.passages.isfinite().sum())
    # Weights of query tokens and the neighbours of passages are those of what was looked at.
    best = want.passages.argmax(-1)
    assert torch.equal(have.passages.argmax(-1), best)
    assert have.passages.amax(-1).tolist() == pytest.approx(want.passages.amax(-1).tolist(), 0.05)
    assert have.certainty is not None and want.certainty is not None
    assert have.certainty.tolist() == pytest.approx(want.certainty.tolist(), 0.05)


def test_hierarchical_knows_what_its_passages_explain() -> None:
    store = store_of(40, keys=False)
    write(store, [0] * 25 + [1] * 15)
    ask = question([0, 1, NO_SESSION], mask=torch.tensor([[True, False, True]] * 3))
    found = Hierarchical(calibration=MODEL).score(ask, store)
    starts = torch.tensor([[3, 24, -1], [39, 26, -1], [-1, -1, -1]])
    assert found.explained is not None
    have, shares = found.explained(starts)
    rule = rule_for(ask.located, MODEL)
    want, want_shares = values_of(ask, store, columns_of(store, 40), rule, starts)
    assert_close("values", have[:2, :, :2], want[:2, :, :2], 1e-4, 1e-4)
    assert_close("shares", shares, want_shares, 1e-4, 1e-4)


def test_each_store_has_a_hierarchy_of_its_own_which_goes_with_it() -> None:
    strategy = Hierarchical(exact_below=8, background=False)
    one, other = store_of(20), store_of(20)
    for store in (one, other):
        write(store, [0] * 10)
        strategy.score(question([0]), store)
    assert strategy.hierarchy(one) is not strategy.hierarchy(other)
    assert strategy.hierarchy(one) is strategy.hierarchy(one)
    del one, store
    gc.collect()  # a ring buffer and its keeper know each other
    assert len(strategy._of) == 1
    strategy.close()


# -- by name --------------------------------------------------------------------------------------


class Newest:
    """The newest blocks first."""

    def score(self, ask: Ask, store: Searched) -> Scored:
        newest = store.created[: store.high_water].float()
        return Scored(newest.expand(len(ask.sessions), -1))


def test_a_strategy_of_ones_own_is_taken_by_its_name() -> None:
    with pytest.raises(ConfigError, match="strategy: one of 'maxsim'"):
        RetrievalConfig(strategy="newest first")
    register_strategy("newest first", lambda parts: Newest())
    store = store_of(20)
    write(store, [0] * 8 + [1] * 8)
    config = RetrievalConfig(strategy="newest first", blocks=1, neighbours=0)
    chosen = Retriever(config).search(question([0, 1]), store)
    assert chosen.table[:, 0, 0].tolist() == [7, 15]


def test_what_is_no_strategy_is_refused() -> None:
    for name in ("maxsim", "semantic_similarity", "", 7):
        with pytest.raises(ConfigError, match="name: a name that is not one of the library's"):
            register_strategy(name, lambda parts: Newest())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="maker: something to call expected, got Newest"):
        register_strategy("mine", Newest())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'hybrid_ensemble'"):
        make_strategy("hybrid_ensembel", parts())
    with pytest.raises(ConfigError, match="did you mean 'hierarchical'"):
        RetrievalConfig(strategy="hierarchcal")


def test_a_synonym_makes_the_same_strategy() -> None:
    assert isinstance(make_strategy("semantic_similarity", parts()), Semantic)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("calibration", [None, MODEL])
def test_every_strategy_finds_the_passage_that_was_asked_for(name: str, calibration) -> None:
    store = store_of(40)
    states, ids = torch.randn(40, BLOCK, HIDDEN), torch.arange(40 * BLOCK).view(40, BLOCK)
    write(store, [0] * 20 + [1] * 20, states, ids)
    wanted = [5, 31]
    ask = question([0, 1], BLOCK, states=states[wanted], token_ids=ids[wanted], located=True)
    found = make_strategy(name, parts(name, calibration)).score(ask, store)
    best = found.passages.argmax(-1).tolist()
    assert all(at in (slot - 1, slot) for at, slot in zip(best, wanted, strict=True)), best


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_empty_store_has_no_passages(name: str) -> None:
    strategy = make_strategy(name, parts(name))
    for sessions in ([0, 1], [NO_SESSION]):
        found = strategy.score(question(sessions), store_of(4))
        assert found.passages.shape == (len(sessions), 0)
        assert found.certainty is None or (found.certainty == 0).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_are_scored_as_if_alone_whatever_others_store(name: str) -> None:
    alone, shared = store_of(60), store_of(60)
    states, ids = torch.randn(12, BLOCK, HIDDEN), torch.randint(WORDS, (12, BLOCK))
    keys = torch.randn(12, 2, BLOCK, 8)
    write(alone, [0] * 12, states, ids, keys)
    write(shared, [1] * 9)
    slots = write(shared, [0] * 12, states, ids, keys)
    write(shared, [1] * 20)
    ask = question([0])
    both = question(
        [1, 0, NO_SESSION],
        states=torch.cat([torch.randn_like(ask.states), ask.states, ask.states]),
        token_ids=ask.token_ids.expand(3, -1),
        heads={LAYER: ask.heads[LAYER].expand(3, -1, -1, -1)},
    )
    strategy = make_strategy(name, parts(name))
    want = strategy.score(ask, alone).passages[0]
    have = strategy.score(both, shared).passages
    assert_close("scores", have[1, slots], want, 1e-4, 1e-4)
    assert not have[2].isfinite().any()


def test_a_row_without_a_session_may_see_nothing() -> None:
    store = store_of(6)
    write(store, [0, 0])
    columns = columns_of(store, 6)  # four empty slots, whose session number is NO_SESSION
    assert isinstance(columns, SearchColumns)
    seen = may_see(columns, torch.tensor([NO_SESSION, 0]), None)
    assert seen.sum(-1).tolist() == [0, 2]


@settings(max_examples=12, deadline=None)
@given(
    history=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=7),
    ended=st.integers(-1, 3),
    reused=st.lists(st.integers(0, 3), max_size=3),
    calibrated=st.booleans(),
    limited=st.booleans(),
)
def test_no_strategy_finds_what_is_another_sessions(
    history: list[list[int]], ended: int, reused: list[int], calibrated: bool, limited: bool
) -> None:
    store, rows = store_of(10, working=4), [0, 1, 2, 3, NO_SESSION, 17]
    strategies = {
        name: make_strategy(name, parts(name, MODEL if calibrated else None)) for name in STRATEGIES
    }
    strategies["clusters"] = Hierarchical(max_clusters=2, exact_below=2, background=False)

    def look() -> None:
        before = torch.tensor([9] * len(rows)) if limited else None
        ask = question(rows, before=before)
        for name, strategy in strategies.items():
            found = strategy.score(ask, store)
            seen = visible(ask, store)
            assert found.passages.shape == seen.shape, name
            assert not (found.passages.isfinite() & ~seen).any(), name
            config = RetrievalConfig(strategy="maxsim", threshold=0.0, blocks=3)
            search = Retriever(config)
            search.strategy = strategy
            table = search.search(ask, store).table
            for row, session in enumerate(rows):
                read = table[row][table[row] >= 0]
                assert (store.session[read] == session).all(), name
                assert session in range(4) or not len(read), name

    for sessions in history:
        write(store, sessions)
    look()
    if ended >= 0:
        store.clear(ended)
    if reused:
        write(store, reused)
    look()
