"""Every operation on real hardware; the CPU runs the same checks on the specification."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from cmr.kernels import ranges
from cmr.kernels.dispatch import REGISTERED
from tests.gpu import checks
from tests.gpu.calls import CALLS
from tests.gpu.inputs import Call, tensors, together
from tests.gpu.writes import WRITES

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(params=CALLS, ids=lambda call: call.name)
def call(request: pytest.FixtureRequest, device: str) -> Call:
    if request.param.large and device == "cpu":
        pytest.skip("large: for a GPU only")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_against_the_specification(call: Call, device: str, dtype: torch.dtype) -> None:
    checks.check_against_the_specification(call, device, dtype)


def test_bitwise_the_same_every_time(call: Call, device: str) -> None:
    checks.check_repeats(call, device, torch.bfloat16, 1000 if device == "cuda" else 3)


def test_replays_as_a_graph(call: Call, device: str) -> None:
    checks.check_replay(call, device, torch.bfloat16)


@pytest.mark.parametrize("part", ["decode step", "write"])
def test_all_of_a_step_replays_as_one_graph(part: str, device: str) -> None:
    calls = [call for call in CALLS if call.decoding and not call.large]
    whole = together(part, calls if part == "decode step" else WRITES)
    checks.check_replay(whole, device, torch.bfloat16)
    checks.check_allocates_nothing(whole, device, torch.bfloat16)


def test_allocates_nothing_when_given_its_outputs(call: Call, device: str) -> None:
    if call.allocate is None:
        pytest.skip("makes its results itself")
    checks.check_allocates_nothing(call, device, torch.bfloat16)


def test_every_operation_is_called() -> None:
    assert {call.operation for call in CALLS} == set(REGISTERED)


def test_what_a_decode_step_calls_can_be_given_its_outputs() -> None:
    decoding = [call for call in CALLS if call.decoding]
    assert {"block_maxima", "maxsim_select", "attention_partials", "reweave_paged"} <= {
        call.operation for call in decoding
    }
    assert all(call.allocate is not None for call in decoding)


def test_inputs_depend_on_the_seed_only(call: Call, device: str) -> None:
    first, again, other = (tensors(call.make(device, torch.float16, seed)) for seed in (0, 0, 1))
    assert [t.shape for t in first] == [t.shape for t in other]
    assert all(t.device.type == device for t in first)
    bits = [[checks.bits(t) for t in made] for made in (first, again, other)]
    assert all(map(torch.equal, bits[0], bits[1]))
    assert not all(map(torch.equal, bits[0], bits[2]))


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_the_range_around_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation opens its range, and no other, as `docs/profiling.md` has it."""
    if call.large:
        pytest.skip("the small one shows it")
    opened: list[str] = []

    def annotate(name: str) -> nullcontext[None]:
        opened.append(name)
        return nullcontext()

    inputs = call.make("cpu", torch.float32, 0)
    monkeypatch.setattr(ranges, "annotate", annotate)
    call.run(inputs, call.outputs(inputs))
    assert opened and set(opened) == {call.span}
