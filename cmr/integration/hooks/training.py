"""What of training a memory cannot take part in.

Gradients flow through a forward as through one of the model without a memory; what was recalled
counts as data, none flows into it.
"""

from __future__ import annotations

import torch

from cmr.errors import AttachError
from cmr.integration.core import Core
from cmr.integration.decoder.adapter import ModelAdapter

DROPOUTS = ("attention_dropout", "attn_pdrop")
"""Names of the attention's dropout in configurations."""


def check_training(core: Core) -> None:
    """Look, ahead of a forward that reads memory while the model is trained, at how it is trained.

    Raises `AttachError` where layers are run again for the backward pass.
    """
    # In every forward: dropout and checkpointing may be switched while the memory is attached.
    if torch.is_grad_enabled() and checkpoints(core.adapter):
        raise AttachError(
            "gradient checkpointing runs the layers again without the memory that they read, "
            "and gradients come out wrong: call gradient_checkpointing_disable(), or train "
            "with the memory paused (memory.pause()) or with nothing recalled "
            "(memory.retrieval(blocks=0))"
        )
    if any(getattr(core.adapter.config, name, 0.0) for name in DROPOUTS):
        core.warn(
            "dropout",
            "memory is not read while attention drops out: call model.eval(), or set the "
            "attention's dropout to 0 to train with memory",
        )


def checkpoints(adapter: ModelAdapter) -> bool:
    """Whether the model runs its layers again for a backward pass, and gives them no cache."""
    modules = (adapter.decoder, *adapter.layers)
    again = any(getattr(module, "gradient_checkpointing", False) for module in modules)
    return adapter.decoder.training and again
