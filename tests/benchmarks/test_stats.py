"""Intervals, passages of equal size and rows: what every reported number goes through."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.shared import rows
from benchmarks.shared.stats import ratio
from benchmarks.texts.documents import Fact, coverage, rank_of
from cmr.evaluation.answers import Passage
from cmr.evaluation.lexical import BM25
from cmr.evaluation.passages import filled, widen
from cmr.evaluation.settings import overrides
from cmr.evaluation.statistics import clustered, wilson


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_clusters_widen_the_interval() -> None:
    values = [1.0] * 40 + [0.0] * 40
    alone = clustered(values, list(range(80)))
    grouped = clustered(values, [i // 10 for i in range(80)])
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])
    with pytest.raises(ValueError, match="80 clusters expected"):
        clustered(values, [0])


def test_a_ratio_of_means_is_drawn_in_pairs() -> None:
    bare = [1.0, 0.0, 1.0, 1.0] * 25
    half = [value / 2 for value in bare]
    share, interval = ratio(half, bare, range(100))
    assert share == 0.5 and interval == pytest.approx((0.5, 0.5))
    share, (low, high) = ratio([1.0] * 50 + [0.0] * 50, bare, range(100))
    assert share == pytest.approx(50 / 75) and 0.45 < low < share < high < 0.95
    with pytest.raises(ValueError, match="2 clusters expected"):
        ratio([1.0, 0.0], [1.0, 1.0], [0])


def test_passages_fill_a_number_of_tokens_without_showing_any_twice() -> None:
    ranked = [(320, 384), (352, 416), (64, 128), (640, 704)]
    assert filled(ranked, 224, 2, 1000) == [(296, 408), (40, 152)]
    assert filled(ranked, 150, 1, 1000) == [(277, 427)]
    assert filled(ranked[:1], 224, 2, 1000) == [(296, 408)]
    assert filled(ranked, 0, 2, 1000) == []


def test_rank_and_coverage_of_a_fact() -> None:
    fact = Fact("f", "", 100, 110, "price", "number", ())
    miss, half, hit = (Passage(a, b, 0, 0, ()) for a, b in ((0, 100), (105, 200), (64, 128)))
    assert rank_of(fact, [miss, half]) == 2
    assert rank_of(fact, [miss]) is None
    assert coverage(fact, [miss, half]) == 0.5
    assert coverage(fact, [half, hit]) == 1.0


@pytest.mark.parametrize("start", [0, 300, 936])
def test_widened_passages_keep_their_size_at_the_edges(start: int) -> None:
    left, right = widen(start, start + 64, 128, 1_000)
    assert right - left == 128
    assert 0 <= left <= start and start + 64 <= right <= 1_000


def test_bm25_shows_exactly_the_tokens_asked_for() -> None:
    pytest.importorskip("rank_bm25")

    class Numbers:
        def decode(self, ids: list[int]) -> str:
            return " ".join(f"word{i}" for i in ids)

    index = BM25(Numbers(), list(range(1_000)))
    spans = index.spans("word500 word501", 192, 2)
    assert sum(b - a for a, b in spans) == 192
    assert spans[0][0] <= 500 < spans[0][1]
    # 1,000 tokens are no whole number of steps of 32: the last eight stand in a passage, too.
    assert index.spans("word999", 64, 1) == [(936, 1_000)]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    rows.append("made", {"a": 1}, {"b": [2.5]}, folder=tmp_path)
    rows.append("made", {"c": "ü"}, folder=tmp_path)
    assert rows.load("made", tmp_path) == [{"a": 1}, {"b": [2.5]}, {"c": "ü"}]
    assert rows.load("none", tmp_path) == []


def test_settings_on_the_command_line() -> None:
    assert overrides(["blocks=1", "memory_weight=auto"]) == {"blocks": 1, "memory_weight": "auto"}
    with pytest.raises(ValueError, match="blocks=2 expected, got 'blocks'"):
        overrides(["blocks"])
