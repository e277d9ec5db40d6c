"""Every operation on real hardware; the CPU runs the same checks on the specification."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from cmr.kernels import ranges
from cmr.kernels.dispatch import REGISTERED
from tests.gpu import checks
from tests.gpu.calls import CALLS
from tests.gpu.every import EVERY, OPERATIONS, Check
from tests.gpu.inputs import Call, NotHere, tensors


@pytest.mark.parametrize("check", OPERATIONS, ids=lambda check: check.name)
def test_operations(check: Check, device: str) -> None:
    try:
        check.run(device)
    except NotHere as error:
        pytest.skip(str(error))


def test_each_check_has_a_name_of_its_own_and_each_call_its_checks() -> None:
    names = [check.name for check in EVERY]
    assert len(names) == len(set(names))
    for call in CALLS:
        own = [name for name in names if name.startswith(f"{call.name}: ")]
        assert len(own) == 5 + (call.allocate is not None)


def test_every_operation_is_called() -> None:
    assert {call.operation for call in CALLS} == set(REGISTERED)


def test_what_a_decode_step_calls_can_be_given_its_outputs() -> None:
    decoding = [call for call in CALLS if call.decoding]
    assert {"block_maxima", "maxsim_select", "attention_partials", "reweave_paged"} <= {
        call.operation for call in decoding
    }
    assert all(call.allocate is not None for call in decoding)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_inputs_depend_on_the_seed_only(call: Call, device: str) -> None:
    if call.large and device == "cpu":
        pytest.skip("large: for a GPU only")
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
