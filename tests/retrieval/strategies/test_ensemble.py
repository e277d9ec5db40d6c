"""Fusion by ranks: the sum that Cormack's formula gives, and its rules for what says nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from cmr.errors import ConfigError
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval.ask import Ask, Scored, Searched
from cmr.retrieval.strategies.ensemble import HybridEnsemble
from tests.retrieval.stored import question, store_of, write


@dataclass
class Says:
    """Always the same scores, for every row."""

    scores: list[float]
    certainty: float | None = None

    def score(self, ask: Ask, store: Searched) -> Scored:
        rows = len(ask.sessions)
        sure = None if self.certainty is None else torch.full((rows,), self.certainty)
        return Scored(torch.tensor(self.scores).expand(rows, -1), sure)


def fused(parts, sessions=(0,), stored=(0, 0, 0, 0), constant=60) -> Scored:
    store = store_of(8)
    write(store, list(stored))
    return HybridEnsemble(parts, constant).score(question(list(sessions)), store)


def test_reciprocal_ranks_are_added_up() -> None:
    a, b = Says([0.9, 0.1, 0.5, 0.3]), Says([-2.0, 7.0, 1.0, 1.0])
    have = fused([(a, 2.0), (b, 0.5)], constant=10).passages[0]
    ranks_a, ranks_b = [1, 4, 2, 3], [4, 1, 2, 2]
    want = [
        (2 / (10 + x) + 0.5 / (10 + y)) / (2.5 / 11) for x, y in zip(ranks_a, ranks_b, strict=True)
    ]
    assert have.tolist() == pytest.approx(want)


def test_ranks_are_of_what_the_row_may_see() -> None:
    """The best scores belong to the other session: within its own, a row's first is rank 1."""
    have = fused([(Says([9.0, 1.0, 8.0, 2.0]), 1.0)], (0, 1, NO_SESSION), (1, 0, 1, 0)).passages
    inf = float("inf")
    want = [[-inf, 61 / 62, -inf, 1.0], [1.0, -inf, 61 / 62, -inf], [-inf] * 4]
    assert have.tolist() == [pytest.approx(row) for row in want]


@pytest.mark.parametrize("silent", [[1.0] * 4, [-float("inf")] * 4, [float("nan")] * 4])
def test_what_says_nothing_adds_nothing(silent: list[float]) -> None:
    a = (Says([0.9, 0.1, 0.5, 0.3]), 1.0)
    alone, beside = fused([a]).passages, fused([a, (Says(silent), 1.0)]).passages
    assert beside.tolist() == [pytest.approx(row) for row in (alone / 2).tolist()]


def test_the_first_strategy_says_how_sure_it_is_and_where_candidates_are() -> None:
    first = Says([0.9, 0.1, 0.5, 0.3], certainty=1.7)
    found = fused([(first, 1.0), (Says([1.0, 2.0, 3.0, 4.0], certainty=9.0), 5.0)])
    assert found.certainty is not None and found.certainty.tolist() == [pytest.approx(1.7)]
    assert found.line is not None and found.line.tolist() == [pytest.approx(first.scores)]


def test_bad_parts_are_refused() -> None:
    part = Says([1.0])
    for parts in ([], [(part, 0.0)]):
        with pytest.raises(ConfigError, match="one with a weight above 0"):
            HybridEnsemble(parts)
    with pytest.raises(ConfigError, match="weight of Says: a number of at least 0"):
        HybridEnsemble([(part, -1.0)])
    with pytest.raises(ConfigError, match="rank_constant: a number above 0 expected, got 0"):
        HybridEnsemble([(part, 1.0)], 0)
