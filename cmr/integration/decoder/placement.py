"""Where a model's weights are: on which device, in which process, or offloaded for the while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Device on which a module computes."""
    # Weights that accelerate keeps in host memory or on a disk are on `meta` between forwards; its
    # hooks know where they are brought.
    device = next(module.parameters()).device
    if device.type != "meta":
        return device
    for part in module.modules():
        for hook in _own_hooks(part):
            at = getattr(hook, "execution_device", None)
            if at is not None:
                return torch.device("cuda", at) if isinstance(at, int) else torch.device(at)
    return device


def shards(module: nn.Module, names: tuple[str, ...]) -> int:
    """Processes among which tensor parallelism divides the projections `names`; 1: it does not."""
    # A bias may be whole in every process: what is divided most tells.
    found = 1
    for name in names:
        projection = getattr(module, name, None)
        if projection is None:
            continue
        for weight in projection.parameters(recurse=False):
            here = own_part(weight)
            found = max(found, round(weight.numel() / max(1, here.numel())))
    return found


def own_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process has of a weight that tensor parallelism divided; else the weight."""
    to_local: Any = getattr(weight, "to_local", None)
    return weight if to_local is None else to_local()


def named_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights by name, as this process has them, offloaded ones included."""
    # They are those of `state_dict`, which is not asked: that of bitsandbytes (0.50) changes 4-bit
    # weights that it had repacked for a CPU.
    for path, module in model.named_modules(remove_duplicate=False):
        passing = module._non_persistent_buffers_set
        kept = {name: x for name, x in module._buffers.items() if name not in passing}
        for name, weight in {**module._parameters, **kept}.items():
            if weight is not None:
                full = f"{path}.{name}" if path else name
                yield full, _present(module, name, own_part(weight))


def whole_weight(module: nn.Module) -> torch.Tensor:
    """The `weight` of a module, offloaded or divided as it may be.

    Where it is divided, all processes have to ask at once.
    """
    weight: Any = module.weight
    weight = weight.detach()
    return _present(module, "weight", getattr(weight, "full_tensor", lambda: weight)())


def _present(owner: nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight itself, where what the model holds is a placeholder for an offloaded one."""
    if weight.device.type != "meta":
        return weight
    for hook in _own_hooks(owner):
        kept = getattr(hook, "weights_map", None)
        if kept is not None:
            return kept[name]
    return weight


def offloaded(module: nn.Module) -> bool:
    """Whether accelerate brings a module's own weights for each forward, and takes them away."""
    return any(getattr(hook, "weights_map", None) is not None for hook in _own_hooks(module))


def _own_hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
