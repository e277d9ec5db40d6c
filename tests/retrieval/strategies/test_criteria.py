"""The criteria do what their weights say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.config import CRITERIA
from cmr.errors import ConfigError
from cmr.kernels.reference import select
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval.ask import Ask, columns_of, visible
from cmr.retrieval.selection import TUNED, ranked
from cmr.retrieval.strategies.criteria import (
    DEFAULT_WEIGHTS,
    MultiCriteria,
    MultiCriteriaRanker,
)
from tests.kernels.helpers.compare import assert_close
from tests.retrieval.strategies.test_maxsim import BLOCK, HIDDEN, ring, search, write

N = 24


def entries(rows: int = 1, features: int = 5) -> dict[str, torch.Tensor]:
    """Entries with values for every criterion in an order of their own."""
    return {
        "similarity": torch.randn(rows, N),
        "relevance": torch.rand(N),
        "created": torch.randperm(N) + 1,
        "seen": torch.rand(rows, N) > 0.3,
        "profiles": torch.randn(rows, features, N),
    }


def order_of(weights: dict[str, float], of: dict[str, torch.Tensor], k: int = N) -> torch.Tensor:
    return MultiCriteriaRanker(weights).rank(**of, k=k).slots


@pytest.mark.parametrize("criterion", ["similarity", "relevance", "recency"])
def test_a_criterion_alone_orders_by_nothing_else(criterion: str) -> None:
    of = entries(rows=3)
    have = order_of({criterion: 2.5}, of)
    of["recency"] = of["created"]
    values = of[criterion].expand(3, N).double().masked_fill(~of["seen"], -torch.inf)
    want = values.argsort(descending=True, stable=True)
    count = of["seen"].sum(-1)
    for row in range(3):
        assert have[row, : count[row]].tolist() == want[row, : count[row]].tolist()
        assert (have[row, count[row] :] == -1).all()


def test_diversity_alone_takes_what_is_least_like_all_before() -> None:
    of = entries(features=3)
    have = order_of({"diversity": 1.0}, of, k=6)[0].tolist()
    units = torch.nn.functional.normalize(of["profiles"][0], dim=0)
    left = of["seen"][0].nonzero()[:, 0].tolist()
    assert have[0] == left[0]  # all are equally new to nothing
    taken = [have[0]]
    for slot in have[1:]:
        left.remove(taken[-1])
        alike = {i: max(0.0, *(float(units[:, i] @ units[:, j]) for j in taken)) for i in left}
        assert alike[slot] == pytest.approx(min(alike.values()), abs=1e-6)
        taken.append(slot)


def test_weights_are_used_as_they_are_given() -> None:
    """A score is the weighted mean of the four numbers, the weights divided by their sum."""
    of, k = entries(rows=2), 5
    weights = {"relevance": 8.0, "similarity": 6.0, "recency": 4.0, "diversity": 2.0}
    found = MultiCriteriaRanker(weights, half_life=3.0).rank(**of, k=k)
    for row in range(2):
        seen = of["seen"][row].nonzero()[:, 0].tolist()
        fits = of["similarity"][row, seen]
        units = torch.nn.functional.normalize(of["profiles"][row], dim=0)
        taken: list[int] = []
        for score, slot in zip(found.scores[row].tolist(), found.slots[row].tolist(), strict=True):
            newer = sum(bool(of["created"][i] > of["created"][slot]) for i in seen)
            place = (of["similarity"][row, slot] - fits.min()) / (fits.max() - fits.min())
            alike = max([0.0, *(float(units[:, slot] @ units[:, other]) for other in taken)])
            want = 0.4 * of["relevance"][slot] + 0.3 * place + 0.2 * 2 ** (-newer / 3)
            assert score == pytest.approx(float(want) + 0.1 * (1 - alike), abs=1e-5)
            taken.append(slot)


@pytest.mark.parametrize("criterion", ["similarity", "relevance", "recency"])
def test_more_weight_on_a_criterion_lifts_what_is_best_by_it(criterion: str) -> None:
    """Of two entries that differ in two criteria, the heavier criterion decides."""
    of = {
        "similarity": torch.tensor([[0.5, 0.5, 0.0, 1.0]]),
        "relevance": torch.tensor([0.5, 0.5, 0.0, 1.0]),
        "created": torch.tensor([2, 3, 1, 4]),
        "seen": torch.ones(1, 4, dtype=torch.bool),
    }
    other = "relevance" if criterion != "relevance" else "similarity"
    for name, low, high in (
        ("similarity", 0.2, 0.8), ("relevance", 0.2, 0.8), ("recency", 2, 3),
    ):  # fmt: skip
        if name in (criterion, other):
            column = of["created" if name == "recency" else name]
            better = 0 if name == criterion else 1
            column[..., better], column[..., 1 - better] = high, low
    heavy = order_of({criterion: 0.8, other: 0.2}, of).tolist()[0]
    light = order_of({criterion: 0.1, other: 0.9}, of).tolist()[0]
    assert heavy.index(0) < heavy.index(1)
    assert light.index(0) > light.index(1)


def test_diversity_leaves_out_a_twin() -> None:
    """The second best is like the best one: with a weight on diversity the third comes first."""
    of = {
        "similarity": torch.tensor([[1.0, 0.9, 0.8, 0.0]]),
        "relevance": torch.full((4,), 0.5),
        "created": torch.arange(1, 5),
        "seen": torch.ones(1, 4, dtype=torch.bool),
        "profiles": torch.tensor([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.01, 1.0, 1.0]]]),
    }
    assert order_of({"similarity": 1.0}, of, k=2)[0].tolist() == [0, 1]
    assert order_of({"similarity": 0.95, "diversity": 0.05}, of, k=2)[0].tolist() == [0, 1]
    assert order_of({"similarity": 0.6, "diversity": 0.4}, of, k=2)[0].tolist() == [0, 2]


def test_what_others_store_changes_nothing() -> None:
    of = entries()
    ranker, seen = MultiCriteriaRanker(), of["seen"][0]
    with_others = ranker.rank(**of, k=4)
    own = {
        "similarity": of["similarity"][:, seen], "relevance": of["relevance"][seen],
        "created": of["created"][seen], "seen": of["seen"][:, seen],
        "profiles": of["profiles"][..., seen],
    }  # fmt: skip
    alone = ranker.rank(**own, k=4)
    assert torch.equal(with_others.scores, alone.scores)
    assert torch.equal(with_others.slots[0], seen.nonzero()[:, 0][alone.slots[0]])


def test_rows_of_a_batch_are_ranked_as_if_alone() -> None:
    of = entries(rows=4)
    of["seen"][2] = False
    together = MultiCriteriaRanker().rank(**of, k=5)
    for row in range(4):
        one = {name: of[name][row : row + 1] if of[name].shape[0] == 4 else of[name] for name in of}
        alone = MultiCriteriaRanker().rank(**one, k=5)
        assert torch.equal(together.slots[row], alone.slots[0])
        assert_close("scores", together.scores[row], alone.scores[0], 1e-6, 1e-6)
    assert (together.slots[2] == -1).all() and (together.scores[2] == -torch.inf).all()


@pytest.mark.parametrize("weights", [None, {"similarity": 1.0}, {"diversity": 1.0}])
def test_nothing_is_ranked_of_nothing(weights: dict[str, float] | None) -> None:
    nothing = {name: values[..., :0] for name, values in entries(rows=2).items()}
    found = MultiCriteriaRanker(weights).rank(**nothing, k=3)
    assert (found.slots == -1).all() and found.slots.shape == (2, 3)


def test_a_similarity_that_is_no_number_is_not_ranked() -> None:
    of = entries()
    of["seen"][:] = True
    of["similarity"][0, 3], of["similarity"][0, 7] = torch.nan, -torch.inf
    found = MultiCriteriaRanker().rank(**of, k=N)
    assert not {3, 7} & set(found.slots[0].tolist())
    assert found.scores[0, : N - 2].isfinite().all()


@pytest.mark.parametrize(
    ("weights", "half_life", "says"),
    [
        ({"relevence": 1.0}, None, "did you mean 'relevance'"),
        ({"relevance": -0.1}, None, "at least 0 expected, got -0.1"),
        ({"relevance": 0.0, "recency": 0}, None, "one above 0"),
        ({}, None, "one above 0"),
        ({"relevance": float("nan")}, None, "got nan"),
        ({"relevance": "much"}, None, "got 'much'"),
        (7, None, "a dict of weights"),
        (None, 0.0, "half_life: a number above 0 expected, got 0.0"),
    ],
)
def test_bad_weights_are_refused(weights: object, half_life: float | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MultiCriteriaRanker(weights, half_life)  # type: ignore[arg-type]


def test_a_diversity_without_profiles_is_refused() -> None:
    of = entries()
    del of["profiles"]
    with pytest.raises(ValueError, match="profiles: a tensor expected"):
        MultiCriteriaRanker().rank(**of, k=3)


@given(
    given_weights=st.dictionaries(
        st.sampled_from(CRITERIA), st.floats(0, 1e308), min_size=1
    ).filter(lambda weights: max(weights.values()) > 1e-300)
)
def test_weights_sum_to_one_in_their_proportions(given_weights: dict[str, float]) -> None:
    weights = MultiCriteriaRanker(given_weights).weights
    assert set(weights) == set(CRITERIA)
    assert sum(weights.values()) == pytest.approx(1.0)
    largest = max(given_weights, key=lambda name: given_weights[name])
    for name, weight in given_weights.items():
        share = weight / given_weights[largest]
        assert weights[name] == pytest.approx(share * weights[largest])


def test_each_is_the_best_given_those_before() -> None:
    base, profiles = torch.rand(3, N), torch.rand(3, 6, N)
    base[1, 4:] = -torch.inf
    have = ranked(base, 6, profiles, 0.4)
    for row in range(3):
        units = torch.nn.functional.normalize(profiles[row].double(), dim=0)
        alike, left = torch.zeros(N).double(), base[row].double()
        for number in range(6):
            score, slot = (left + 0.4 * (1 - alike)).max(0)
            if score == -torch.inf:
                assert have.slots[row, number] == -1
                continue
            assert have.slots[row, number] == slot
            assert_close("score", have.scores[row, number], score.float(), 1e-6, 1e-6)
            alike = torch.maximum(alike, units.T @ units[:, slot])
            left[slot] = -torch.inf


# -- as a strategy over a store of blocks ---------------------------------------------------------


def choose(store, query, sessions, weights, k=3):
    ask = Ask(query, None, torch.tensor(sessions))
    found = MultiCriteria(MultiCriteriaRanker(weights)).score(ask, store)
    columns = columns_of(store, store.high_water)
    scores, starts = ranked(
        select.at_peaks(found.line, found.passages, columns), k, found.profiles, found.diversity
    )
    certainty = select.certainty_of(found.line, visible(ask, store).sum(-1), TUNED)
    table = select.stamped_table(starts, columns, TUNED)
    return select.Selection(scores, starts, certainty, *table, scores, scores)


def test_similarity_alone_chooses_what_the_default_search_does() -> None:
    store = ring(40)
    write(store, [0] * 25 + [1] * 15)
    query = torch.stack([store.index[7], store.index[33]])
    have = choose(store, query, [0, 1], {"similarity": 1.0})
    want = search(store, query, [0, 1], blocks=3, ratio=0.0, neighbours=0)
    good = want.table >= 0  # the default leaves out what fits less than usual
    assert good.sum() >= 8 and torch.equal(have.table[good], want.table[good])
    assert torch.equal(have.certainty, want.certainty)


@pytest.mark.parametrize("criterion", ["relevance", "recency"])
def test_a_criterion_alone_orders_the_passages_that_stand_out(criterion: str) -> None:
    store = ring(40)
    write(store, [0] * 40)
    store.relevance.copy_(torch.rand(40))
    query = torch.randn(1, 6, HIDDEN)
    peaks = choose(store, query, [0], {"similarity": 1.0}, k=40).starts[0]
    peaks = peaks[peaks >= 0]
    have = choose(store, query, [0], {criterion: 1.0}, k=len(peaks)).starts[0]
    column = store.relevance if criterion == "relevance" else store.created
    want = peaks[column[peaks].argsort(descending=True)]
    assert len(peaks) > 5 and torch.equal(have, want)


def test_diversity_finds_the_second_fact() -> None:
    """Both halves of the question have a passage; the better half has a second one besides."""
    store, states = ring(40), torch.randn(40, BLOCK, HIDDEN)
    states[30] = states[3] + 0.02 * torch.randn(BLOCK, HIDDEN)
    states[20] = states[20] + 0.2 * torch.randn(BLOCK, HIDDEN)
    query = torch.cat([states[3], states[20] + torch.randn(BLOCK, HIDDEN)])[None]
    write(store, [0] * 40, states)

    def found(weights):
        read = choose(store, query, [0], weights, k=2).table
        return {block for block in (3, 20, 30) if block in read}

    assert found({"similarity": 1.0}) == {3, 30}
    assert found({"similarity": 0.5, "diversity": 0.5}) in ({3, 20}, {30, 20})


@settings(max_examples=30, deadline=None)
@given(
    history=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=8),
    ended=st.integers(-1, 3),
    weights=st.sampled_from([{name: 1.0} for name in CRITERIA] + [DEFAULT_WEIGHTS]),
)
def test_a_row_only_ever_sees_its_own_session(
    history: list[list[int]], ended: int, weights: dict[str, float]
) -> None:
    store = ring(12)
    for sessions in history:
        write(store, sessions)
    if ended >= 0:
        store.clear(ended)
    rows = [0, 1, 2, 3, NO_SESSION]
    chosen = choose(store, torch.randn(5, 3, HIDDEN), rows, weights)
    for row, session in enumerate(rows):
        read = chosen.table[row][chosen.table[row] >= 0]
        assert (store.session[read] == session).all()
        assert session != NO_SESSION or not len(read)
