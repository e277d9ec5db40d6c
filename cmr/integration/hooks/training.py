"""What of training a memory cannot take part in."""

from __future__ import annotations

import torch

from cmr._warning import warn
from cmr.errors import AttachError
from cmr.integration.decoder.adapter import ModelAdapter

DROPOUTS = ("attention_dropout", "attn_pdrop")
"""Names of the attention's dropout in configurations."""


class Training:
    """Looks, ahead of a forward that reads memory, at how its model is trained.

    Gradients flow through the forward as through one of the model without a memory; what was
    recalled counts as data, none flows into it.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter
        self._warned = False

    def check(self) -> None:
        """Look, with the settings that hold at present.

        Raises:
            AttachError: layers are run again for the backward pass.
        """
        if not self._adapter.decoder.training:
            return
        if torch.is_grad_enabled() and checkpoints(self._adapter):
            raise AttachError(
                "gradient checkpointing runs the layers again without the memory that they read, "
                "and gradients come out wrong: call gradient_checkpointing_disable(), or train "
                "with the memory paused (memory.pause()) or with nothing recalled "
                "(memory.retrieval(blocks=0))"
            )
        drops = any(getattr(self._adapter.config, name, 0.0) for name in DROPOUTS)
        if drops and not self._warned:
            self._warned = True
            warn(
                "memory is not read while attention drops out: call model.eval(), or set the "
                "attention's dropout to 0 to train with memory"
            )


def checkpoints(adapter: ModelAdapter) -> bool:
    """Whether the model runs its layers again for a backward pass, and gives them no cache."""
    modules = (adapter.decoder, *adapter.layers)
    again = any(getattr(module, "gradient_checkpointing", False) for module in modules)
    return adapter.decoder.training and again
