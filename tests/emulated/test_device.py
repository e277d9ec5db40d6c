"""The emulated GPU counts what a GPU would launch and wait for, and computes what a CPU does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import cmr
from tests.emulated.decoding import SETTINGS, Decoding, llama, on_emulated, some_text
from tests.emulated.device import DEVICE, Device, Emulated


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with torch.no_grad(), Device().running() as running:
        yield running


def there(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel()), device=DEVICE).view(shape)


WAITING: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool(x.any()),
    "int": lambda x: int(x.sum()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.cpu().numpy(),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "a bool index": lambda x: x[x > 1],
    "an index of the host": lambda x: x[torch.tensor([1, 0])],
    "a list as an index": lambda x: x[[1, 0]],
    "a number of the device as an index": lambda x: x[(x.sum() > 0).long()],
    "a write at an index of the host": lambda x: x.__setitem__(torch.tensor([1]), 2.0),
    "a write of values of the host": lambda x: x.__setitem__(slice(0, 1), torch.ones(1, 4)),
    "a copy from the host": lambda x: x.copy_(torch.ones(3, 4)),
    "a copy to the host": lambda x: torch.ones(3, 4).copy_(x),
    "other memory": lambda x: torch.ones(3).to(x.device, non_blocking=True),
    "pinned memory that is waited for": lambda x: torch.ones(3).pin_memory().to(x.device),
    "to": lambda x: torch.ones(3).to(x.device),
    "tensor": lambda x: torch.tensor([1, 2], device=x.device),
    "equal": lambda x: x.equal(x),
    "unique": lambda x: x.unique(),
    "repeat_interleave": lambda x: x.repeat_interleave((x[:, 0] > 0).long(), dim=0),
}
GOING_ON: dict[str, tuple[int, Callable[[torch.Tensor], object]]] = {
    "an operation": (1, lambda x: x + 1),
    "in place": (1, lambda x: x.add_(1)),
    "inverted": (2, lambda x: ~(x > 0)),
    "a product": (1, lambda x: x @ x.t()),
    "made there": (1, lambda x: torch.zeros(3, device=x.device)),
    "views": (0, lambda x: x[1:, None].transpose(0, 1).expand(2, -1, -1)[..., 0]),
    "memory alone": (0, lambda x: torch.empty_like(x)),
    "contiguous already": (0, lambda x: x.contiguous()),
    "made contiguous": (1, lambda x: x.t().contiguous()),
    "an index of the device": (3, lambda x: x[(x[:, 0] > 0).long()]),
    "a write of a number": (1, lambda x: x.__setitem__(slice(0, 1), 2.0)),
    "on the host": (0, lambda x: torch.ones(3).sum().item()),
    "a copy from pinned memory": (
        1,
        lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    ),
    "moved to where it is": (0, lambda x: x.to(x.device)),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits(device: Device, name: str) -> None:
    x = there(3, 4)
    with device.counting() as count:
        WAITING[name](x)
    assert count.waited == 1, count.waits
    assert count.launched >= 1


@pytest.mark.parametrize("name", GOING_ON)
def test_what_does_not_wait(device: Device, name: str) -> None:
    operations, call = GOING_ON[name]
    x = there(3, 4)
    with device.counting() as count:
        call(x)
    assert count.waited == 0, count.waits
    assert count.launched == operations, count.names


def test_nothing_is_noted_outside(device: Device) -> None:
    with device.counting() as count:
        pass
    there(2, 2).sum().item()
    assert not count.operations and not count.waits


def test_a_tensor_says_where_it_is(device: Device) -> None:
    x = there(2, 3)[:, 1:]
    assert isinstance(x, Emulated) and x.device == DEVICE
    assert x.stride() == (3, 1) and x.storage_offset() == 1 and x.dtype == torch.float32


def test_it_computes_what_the_cpu_does(device: Device) -> None:
    """Blocks are read where they are stored there, and from a copy on the CPU."""
    ids, said = some_text(600, seed=2), {}
    for name, model in (("there", on_emulated(device)), ("here", llama())):
        with cmr.attach(model, **SETTINGS, window=48) as memory:
            memory.read(ids)
            run = Decoding(device, model) if name == "there" else None
            if run is None:
                out = model(some_text(40, seed=1), use_cache=True)
                said[name] = out.logits[0, -1].float()
            else:
                said[name] = run.logits[0].cpu().float()
    torch.testing.assert_close(said["there"], said["here"], atol=0.05, rtol=0.05)
