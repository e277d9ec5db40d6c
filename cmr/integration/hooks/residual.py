"""The forms of reweaving that blend stored states into what enters a block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cmr.integration.core import Core
from cmr.integration.decoder.adapter import entering_states, with_states
from cmr.integration.hooks.step import Step
from cmr.integration.hooks.stepper import Stepper
from cmr.integration.reweave.held import StateRows
from cmr.kernels.reweave_residual import reweave_residual_paged
from cmr.reconstruction.blend import blend, fit
from cmr.reconstruction.readout import read_out, temperature


class ResidualReader:
    """Hooks that blend recalled states into the states that enter each reading block.

    With m a weighted sum of the recalled states and w the configured `memory_weight`:
    'weighted_sum' h' = (1 - w) h + w m, 'residual' h' = h + w m, 'gated' h' = h + g (m - h) with
    g = w `fit`. How m is formed is up to `reconstruction_method`, see `read_out`. The first tokens
    of a text are left alone like in the attention form. Measured, these forms carry no usable
    recall (docs/how-it-works.md); they are there for those who ask for them by name.
    """

    def __init__(self, core: Core, stepper: Stepper) -> None:
        self._core, self._stepper = core, stepper
        stepper.reading.functions.append(ResidualReader._blend)
        self._weight = core.config.reweave.fixed_gate
        self._method = core.config.reweave.method
        self._handles: list[Any] = []
        self._blended: Any = torch.compiler.disable(self._blend)

    def attach(self) -> None:
        """Put the hooks in place."""
        for number in sorted(self._core.layout.read_layers):
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
            return with_states(args, kwargs, self._blended(number, entering_states(args, kwargs)))

        return hook

    def _blend(self, number: int, states: torch.Tensor) -> torch.Tensor:
        step = self._stepper.step
        assert step is not None and step.recall is not None
        # Asked anew each time: it may be changed while the memory is attached.
        method = self._core.config.reweave.reconstruction_method
        seen = None if step.query_mask is None else step.query_mask.to(states.device)
        fused = self._method == "weighted_sum" and method != "hierarchical"
        fused = fused and not (torch.is_grad_enabled() and states.requires_grad)
        held = step.recall.stored_states(number) if fused else None
        if held is None:
            rows = step.recall.state_rows(number)
            return self._mixed(step, number, states, rows, method, seen)
        return reweave_residual_paged(
            states.clone(),  # what comes in may be kept by others
            held.keys,
            held.table,
            held.stamps,
            held.created,
            held.positions,
            torch.full((len(states),), self._weight, device=states.device),
            temperature(method, states.shape[-1]),
            query_mask=seen,
        )

    def _mixed(
        self,
        step: Step,
        number: int,
        states: torch.Tensor,
        held: StateRows,
        method: str | None,
        seen: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the fused operation does not do: plain PyTorch, from a copy made once a search."""
        reads = held.mask.any(1, keepdim=True)
        reads = reads if seen is None else reads & seen
        weight: float | torch.Tensor = self._weight
        if self._method == "gated":
            weight = self._weight * fit(states, held.states, held.mask, held.floor)
            step.gates[number] = torch.where(reads, weight, 0.0)[:, None].detach()
        recalled = read_out(states, held.states, held.mask, method=method, passages=held.passages)
        return blend(states, recalled, reads, self._method, weight)
