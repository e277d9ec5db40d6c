"""What NVTX ranges cost: `pytest benchmarks/ops/bench_ranges.py`.

`never`: the same operation registered without any thought of ranges; `off`: as it is shipped; `on`:
inside a range. The operation is a small one, so that its own time hides nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from benchmarks.ops.measure import conditions, size
from cmr.kernels import ranges
from cmr.kernels.dispatch import implementation
from cmr.kernels.score import state_scores_, state_scores_plain

_LIBRARY = torch.library.Library("cmr_bench", "DEF")
_LIBRARY.define(
    "state_scores(Tensor states, Tensor? lengths, int block_size, Tensor(a!) variance, "
    "Tensor(b!) norm, Tensor(c!) inverse_norm, Tensor(d!) pooled) -> ()"
)


def _without(*arguments: Any) -> None:
    if implementation("cpu").name == "reference":
        state_scores_plain(*arguments)


_LIBRARY.impl("state_scores", _without, "CPU")


@pytest.mark.parametrize("by", ["never", "off", "on"])
def test_ranges(benchmark, by: str) -> None:
    states = torch.randn(1, 1, 8)
    out = [torch.empty(1, 1) for _ in range(4)]
    operation = torch.ops.cmr_bench.state_scores.default if by == "never" else state_scores_
    if by == "on":
        pytest.importorskip("nvtx")
    if benchmark.enabled:
        benchmark.extra_info.update(conditions("cpu"))
    benchmark.extra_info.update(by=by, bytes=size(states, *out))
    with torch.inference_mode(), ranges.shown() if by == "on" else nullcontext():
        benchmark(operation, states, None, 1, *out)
