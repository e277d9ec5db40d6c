"""`CMRTransformer` and `IntegratedCMRModel`: a decoder, a memory, and little more."""

from __future__ import annotations

from typing import Any

import torch

from cmr.integration.models.memory_model import Given, MemoryModel
from cmr.integration.models.outputs import CMROutput
from cmr.integration.models.passes import Sessions


class CMRTransformer(MemoryModel):
    """A decoder that captures states and recalls texts, once its hooks are registered.

    Args:
        config: of the decoder, as `source` of `MemoryModel`. `SimpleNamespace(vocab_size=50257,
            num_hidden_layers=8)` makes a small random decoder, offline.
        memory_config: settings of the memory, nested or flat.
        model_name: name or folder of weights; None: random ones, always the same.
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

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_memory: bool | None = None,
        *,
        sessions: Sessions = None,
        **inputs: Any,
    ) -> CMROutput:
        """A forward that recalls first and remembers afterwards.

        Args:
            input_ids: `[batch, tokens]` integers.
            attention_mask: the same shape, 0 for padding.
            use_memory: True or False for this call; None: as enabled.
            sessions: one name for all rows, or one a row; None: `str(row)`.
            **inputs: of the decoder's forward. With `past_key_values` or `use_cache=True` the
                text goes on: it is stored as it leaves the window, see `Memory.absorb`.

        Raises:
            TypeError, ValueError: for ids or a mask that cannot be read; nothing is stored then.
        """
        return self._run(input_ids, attention_mask, use_memory, sessions, None, inputs)


class IntegratedCMRModel(MemoryModel):
    """A decoder with a memory, on from the beginning.

    Args:
        base_config: of the decoder, as `source` of `MemoryModel`.
        memory_config: settings of the memory, nested or flat.
        device: 'cpu', 'cuda', 'auto' or None.
        **options: the others of `MemoryModel`.
    """

    def __init__(
        self,
        base_config: Any,
        memory_config: Given = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> None:
        super().__init__(base_config, memory_config, device=device, **options)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_memory: bool | None = None,
        *,
        sessions: Sessions = None,
        **inputs: Any,
    ) -> CMROutput:
        """See `CMRTransformer.forward`; also gives `performance_stats`."""
        output = self._run(input_ids, attention_mask, use_memory, sessions, None, inputs)
        output.performance_stats = self.performance.stats()
        return output
