"""`CMRTransformer` and `IntegratedCMRModel`: a decoder, a memory, and little more."""

from __future__ import annotations

from typing import Any

import torch

from cmr.integration.models.memory_model import Given, MemoryModel


class CMRTransformer(MemoryModel):
    """A decoder that captures states and recalls texts, once its hooks are registered.

    Args:
        config: of the decoder, as `source` of `MemoryModel`. `SimpleNamespace(vocab_size=50257,
            num_hidden_layers=8)` makes a small random decoder, offline.
        memory_config: `settings` of `MemoryModel`.
        model_name: as there; None: random weights, always the same.
        **options: the others of `MemoryModel`.
    """

    def __init__(
        self,
        config: Any = None,
        memory_config: Given = None,
        model_name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(config, memory_config, model_name=model_name, **options)
        # The specification registers hooks by a call of their own.
        self.cleanup_hooks()


class IntegratedCMRModel(MemoryModel):
    """A decoder with a memory, on from the beginning, whose forwards give `performance_stats`.

    Args:
        base_config: of the decoder, as `source` of `MemoryModel`.
        memory_config: `settings` of `MemoryModel`.
        device: as there.
        **options: the others of `MemoryModel`.
    """

    MEASURED = True

    def __init__(
        self,
        base_config: Any,
        memory_config: Given = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        super().__init__(base_config, memory_config, device=device, **options)
