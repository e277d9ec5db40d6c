"""`CMRTransformer` and `IntegratedCMRModel`: a decoder, a memory, and little more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cmr.config import CMRConfig
from cmr.integration.models.backbone.placement import decoder_for
from cmr.integration.models.feeder import Scorer
from cmr.integration.models.memory_model import Sessions
from cmr.integration.models.outputs import CMROutput
from cmr.integration.models.saved import SavedModel
from cmr.memory.buffer.layered import LayeredMemoryBuffer

Given = CMRConfig | Mapping[str, Any] | None


class CMRTransformer(SavedModel):
    """A decoder that captures states and recalls texts, once its hooks are registered.

    Args:
        config: of the decoder: of transformers, a dictionary, or a `SimpleNamespace` such as
            `SimpleNamespace(vocab_size=50257, num_hidden_layers=8)`, which makes a small random
            decoder, offline. Also a name, a folder or a loaded model. With `model_name` the
            configuration to load it with, or None.
        memory_config: settings of the memory, nested or flat. `device` is the device of
            computation.
        model_name: name or folder of weights; None: random ones, always the same.
        output_hidden_size: width of `last_hidden_state`; None: the decoder's own.
        tokenizer: as for `cmr.attach`.
        memory_buffer: a buffer of yours; None: one as the settings say.
        scorer: what tells the relevance of captured states, see `AttachedModel`; None: as the
            settings say.
        **loading: for `load_backbone`: `device`, `quantization`, `use_quantization`, `dtype` and
            options of `from_pretrained`.

    Raises:
        ModelNotFoundError, ConfigError, UnsupportedModelError: see `load_backbone` and
            `cmr.attach`.
    """

    def __init__(
        self,
        config: Any = None,
        memory_config: Given = None,
        model_name: str | None = None,
        *,
        output_hidden_size: int | None = None,
        tokenizer: Any = None,
        memory_buffer: LayeredMemoryBuffer | None = None,
        scorer: Scorer | None = None,
        **loading: Any,
    ) -> None:
        model = decoder_for(config, model_name, memory_config, loading)
        super().__init__(
            model,
            memory_config,
            output_hidden_size=output_hidden_size,
            tokenizer=tokenizer,
            memory_buffer=memory_buffer,
            scorer=scorer,
        )
        self._unregister()

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


class IntegratedCMRModel(SavedModel):
    """A decoder with a memory, on from the beginning.

    Args:
        base_config: a configuration, a name, a folder, or a loaded model; see `load_backbone`.
        memory_config: settings of the memory, nested or flat.
        device: 'cpu', 'cuda', 'auto' or None.
        output_hidden_size: width of `last_hidden_state`; None: the decoder's own.
        tokenizer: as for `cmr.attach`.
        memory_buffer: a buffer of yours; None: one as the settings say.
        scorer: what tells the relevance of captured states, see `AttachedModel`; None: as the
            settings say.
        **loading: for `load_backbone`.

    Raises:
        ModelNotFoundError, ConfigError, UnsupportedModelError: see `load_backbone` and
            `cmr.attach`.
    """

    def __init__(
        self,
        base_config: Any,
        memory_config: Given = None,
        device: str | torch.device | None = None,
        *,
        output_hidden_size: int | None = None,
        tokenizer: Any = None,
        memory_buffer: LayeredMemoryBuffer | None = None,
        scorer: Scorer | None = None,
        **loading: Any,
    ) -> None:
        model = decoder_for(base_config, None, memory_config, {**loading, "device": device})
        super().__init__(
            model,
            memory_config,
            output_hidden_size=output_hidden_size,
            tokenizer=tokenizer,
            memory_buffer=memory_buffer,
            scorer=scorer,
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_memory: bool | None = None,
        *,
        sessions: Sessions = None,
        **inputs: Any,
    ) -> CMROutput:
        """See `CMRTransformer.forward`; also gives `performance_stats` and `retrieval_stats`."""
        output = self._run(input_ids, attention_mask, use_memory, sessions, None, inputs)
        output.performance_stats = self.performance.stats()
        return output
