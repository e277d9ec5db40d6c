"""The script that Nsight runs works without a GPU."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from benchmarks.ops import decode_profile
from cmr.kernels import ranges

SHORT = ["--device", "cpu", "--stored", "256", "--steps", "16", "--warmup", "1"]


def test_the_steps_open_the_ranges(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = SimpleNamespace(annotate=lambda name, domain: nullcontext())
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    before = ranges.annotate
    seen = decode_profile.main(SHORT)
    assert ranges.annotate is before
    assert seen["cmr.reweave"] >= 16, "every step reads memory"
    assert 1 <= seen["cmr.retrieve"] <= 32, "one search in 16 steps"
    said = capsys.readouterr().out
    assert "ms a step" in said and "cpu: reference" in said
