"""The residual form of reweaving: stored states blended into what enters a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cmr.integration.core import Core
from cmr.integration.stepper import Stepper
from cmr.kernels.reweave import reweave_residual, reweave_residual_paged


class ResidualReader:
    """Hooks that blend recalled states into the states that enter each reading block.

    h' = (1 - w) h + w Σ softmax(cos(h, m)) m, with w the configured `memory_weight`. The first
    tokens of a text are left alone like in the attention form. Measured, this form carries no
    usable recall (docs/how-it-works.md); it is there for those who ask for it by name.

    Args:
        core: the memory's store and settings.
        stepper: knows what the forward under way recalls.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        self._weight = core.config.reweave.fixed_gate
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put the hooks in place, where this form is configured."""
        if not self._core.residual:
            return
        for number in sorted(self._core.read_layers):
            block = self._core.adapter.layers[number]
            hook = self._hook(number)
            self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, number: int) -> Any:
        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            step = self._stepper.step
            if step is None or step.recall is None:
                return None
            states = args[0] if args else kwargs["hidden_states"]
            blended = self._blend(number, states)
            if args:
                return (blended, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": blended}

        return hook

    def _blend(self, number: int, states: torch.Tensor) -> torch.Tensor:
        step = self._stepper.step
        assert step is not None and step.recall is not None
        device, seen = states.device, step.query_mask
        seen = None if seen is None else seen.to(device)
        if torch.is_grad_enabled() and states.requires_grad:
            memory, mask = step.recall.gathered_states(number)
            blended = reweave_residual(states, memory.to(states.dtype), mask, self._weight)
            return blended if seen is None else torch.where(seen[..., None], blended, states)
        held = step.recall.states(number)
        blended = states.clone()  # what comes in may be kept by others
        return reweave_residual_paged(
            blended,
            held.keys,
            held.table,
            held.stamps,
            held.created,
            held.positions,
            torch.full((len(states),), self._weight, device=device),
            query_mask=seen,
        )
