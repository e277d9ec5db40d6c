"""The quick evaluation as a measurement: its mean over kinds, and the dense retriever beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.recall import quick
from cmr.evaluation import SYSTEMS
from cmr.evaluation.documents import Document
from cmr.evaluation.passages import tokens_of
from cmr.evaluation.systems import Asked


def test_every_kind_counts_the_same() -> None:
    rows = [{"kind": "needle", "contains": 1.0, "reply": "yes"} for _ in range(9)]
    rows += [{"kind": "variables", "contains": 0.0, "reply": "no"}]
    rows += [{"kind": "variables", "contains": 0.5, "reply": "half"}]
    found = quick.over_kinds(rows)
    assert found["mean"] == pytest.approx((1.0 + 0.25) / 2)
    low, high = found["mean_interval"]
    assert low == pytest.approx(0.5) and high == pytest.approx(0.75)
    assert quick.over_kinds([{"kind": "needle", "reply": None}]) == {}


class Words:
    """A tokenizer to which a word is a token."""

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


class Nearest:
    """An index that finds where a number stands."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def scores(self, question: str) -> np.ndarray:
        return np.array([float(question in text.split()) for text in self.texts])


def test_dense_shows_as_much_as_memory_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "Dense", Nearest)
    asked: Any = Asked(None, Words(), 8, False, 512, {}, 704.0)
    dense = quick.DenseText(asked)
    dense.open(Document("numbers", "", list(range(1_000))))
    found = dense.spans("500", [(0, 64), (100, 164)])
    assert 500 in tokens_of(found) and len(tokens_of(found)) == 128
    assert len(tokens_of(dense.spans("500", None))) == quick.UNTOLD


def test_any_length_and_system_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Found:
        rows: list[Any] = []  # noqa: RUF012

        def summary(self) -> list[Any]:
            return []

    def asked(*args: Any, **options: Any) -> Found:
        given.update(options)
        return Found()

    monkeypatch.setattr("benchmarks.shared.model.load_model", lambda name: (None, None))
    monkeypatch.setattr("benchmarks.shared.rows.conditions", lambda *_, **__: {})
    monkeypatch.setattr(quick, "quick", lambda *words: given.update(made=words[1:]) or ({}, []))
    monkeypatch.setattr(quick, "evaluate", asked)
    quick.main(["--tokens", "8000", "--documents", "1", "--systems", "memory", "dense", "kvpress"])
    assert given["made"] == (0, 8_000, 1) and given["systems"] == ["memory", "dense", "kvpress"]
    quick.main(["--kept", "0.5"])
    assert given["systems"] == list(SYSTEMS[:-1]) and given["kept"] == 0.5
