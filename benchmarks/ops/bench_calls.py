"""Operations that nobody writes in plain PyTorch but we: `pytest benchmarks/ops/bench_calls.py`.

The plain side is their specification. On a CPU that is what runs anyway, and both sides are equal.
"""

from __future__ import annotations

import pytest

from benchmarks.ops.measure import DEVICES, DTYPE, SIDES, assert_equal_outputs, measure, size
from cmr.kernels import dispatch
from tests.gpu.calls import CALLS
from tests.gpu.inputs import Outputs, tensors

OPERATIONS = (
    "hybrid_blocks", "standardise", "words", "part_scores", "best_passages", "cover",
    "within_lines", "recalled", "without_unread", "write_query", "ring_link",
)  # fmt: skip


def named(operation: str, large: bool) -> str:
    """The name of an operation's last call, of the large one where there is one."""
    found = [call.name for call in CALLS if call.operation == operation and call.large <= large]
    return found[-1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [named(operation, large=True) for operation in OPERATIONS])
@pytest.mark.parametrize("by", SIDES)
def test_call(benchmark, name: str, device: str, by: str) -> None:
    (call,) = (call for call in CALLS if call.name == name)
    if call.large and device == "cpu":
        pytest.skip("large: for a GPU only")
    given = call.make(device, DTYPE, 0)
    own, other = call.outputs(given), call.outputs(given)

    def ours() -> Outputs:
        return call.run(given, own)

    def plain() -> Outputs:
        with dispatch.using("reference"):
            return call.run(given, other)

    def equal(have: Outputs, want: Outputs) -> None:
        assert_equal_outputs(have, want, atol=1e-4)

    # All inputs and outputs once, the least that a call moves if it needs all of its inputs.
    measure(
        benchmark, by, {"cmr": ours, "plain": plain}, device=device, equal=equal,
        moved=size(*tensors(given), *ours()), call=name,
    )  # fmt: skip
