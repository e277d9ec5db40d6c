"""What the host takes for a layer's launches, measured small."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from benchmarks.cost import host


def test_what_was_launched_before_takes_a_share_of_what_it_took_first() -> None:
    row = host.measured(steps=2, rounds=3)
    spent = row["us_a_layer"]
    assert 0 < spent["known"] < 0.5 * spent["first"], spent
    assert spent["known"] <= spent["grows"] < spent["first"], spent
    assert row["of_first"] == pytest.approx(spent["known"] / spent["first"], abs=0.01)
    assert row["triton"] and row["layers"] == host.LAYERS


def test_other_launches_than_two_a_layer_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    weave = host.weave

    def twice(*given: object, **named: object) -> object:
        weave(*given, **named)
        return weave(*given, **named)

    monkeypatch.setattr(host, "weave", twice)
    with pytest.raises(RuntimeError, match="two launches in each of 69 layers expected, got 276"):
        host.measured(steps=1, rounds=0)
