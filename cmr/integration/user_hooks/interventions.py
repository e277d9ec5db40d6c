"""Hooks that change the states entering blocks: which may stand together, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter, entering_states, with_states
from cmr.integration.memory import ATTACHED, Memory
from cmr.integration.user_hooks.hook import Hook, by_layer


class Interventions:
    """The interventions on one model, which may have a memory."""

    def __init__(self, model: nn.Module, adapter: ModelAdapter) -> None:
        self._model, self._adapter = model, adapter
        self._handles: list[Any] = []

    def require_decided(
        self, name: str, layers: tuple[int, ...], order: int | None, others: Iterable[Hook]
    ) -> None:
        """Raises `ConfigError` where nothing says which of two changes of a state comes first.

        `others` are the interventions that are on beside the one of that name.
        """
        if order is not None:
            order = check.integer("order", order, -(1 << 31))
        # Blending is a change of the same states, and its place among others is fixed by nothing.
        memory: Memory | None = getattr(self._model, ATTACHED, None)
        if memory is not None and memory._core.layout.residual:
            both = sorted(set(layers) & memory._core.layout.read_layers)
            if both:
                raise ConfigError(
                    f"intervention {name!r}: the attached memory blends states into layers {both} "
                    f"(method={memory.config.reweave.method!r}); other layers expected, or "
                    "method='attention'"
                )
        for other in others:
            both = sorted(set(layers) & set(other.layers))
            if both and (order is None or other.order is None or order == other.order):
                raise ConfigError(
                    f"intervention {name!r} meets {other.name!r} on layers {both}: an order of its "
                    f"own expected for each, got {order} and {other.order}"
                )

    def arrange(self, hooks: Iterable[Hook]) -> None:
        """Let exactly these run, each layer's in their order."""
        for handle in self._handles:
            handle.remove()
        # One hook a layer, made anew: PyTorch runs hooks as they were registered, which is not
        # their order. In front of all others, as whoever captures states wants them changed.
        self._handles = [
            self._adapter.layers[layer].register_forward_pre_hook(
                _changing(layer, sorted(found, key=lambda hook: hook.order or 0)),
                with_kwargs=True,
                prepend=True,
            )
            for layer, found in by_layer(hooks).items()
        ]


def _changing(layer: int, hooks: list[Hook]) -> Callable[..., Any]:
    """Runs interventions on the states that enter a block."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = entering_states(args, kwargs)
        for each in hooks:
            assert each.function is not None
            # Each sees what the one before it made.
            found = each.function(states, layer)
            _require_like(each.name, found, states)
            states = found
        return with_states(args, kwargs, states)

    return hook


def _require_like(name: str, found: Any, states: torch.Tensor) -> None:
    """Raises where an intervention gave something that the layer cannot take."""
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"intervention {name!r}: a tensor of states expected, got {type(found).__name__}"
        )
    wanted = (list(states.shape), states.dtype, states.device)
    have = (list(found.shape), found.dtype, found.device)
    if have != wanted:
        raise ValueError(f"intervention {name!r}: states of {wanted} expected, got {have}")
