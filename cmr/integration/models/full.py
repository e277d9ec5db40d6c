"""`FullCMRModel`: a decoder with everything that the memory can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cmr.config import CMRConfig
from cmr.integration.models.backbone.backbones import BackboneAdapter
from cmr.integration.models.backbone.placement import decoder_for
from cmr.integration.models.feeder import Scorer
from cmr.integration.models.memory_model import Sessions
from cmr.integration.models.outputs import CMROutput
from cmr.integration.models.steering import Steering
from cmr.integration.models.views import Looking
from cmr.memory.buffer.layered import LayeredMemoryBuffer


class FullCMRModel(Steering, Looking):
    """A decoder that remembers, with retrieval, reconstruction and all that steers them.

    Args:
        base_config: a configuration (random weights, always the same), a name, a folder, or a
            loaded model; see `load_backbone`.
        cmr_config: settings, nested or flat: see `CMRConfig.from_dict`. `device` in them is the
            device of computation.
        device: 'cpu', 'cuda', 'auto' or None.
        adapter: the kind of decoder that is expected; None: any that is covered.
        output_hidden_size: width of `last_hidden_state`; None: the decoder's own. `logits` and
            `hidden_states` are always the decoder's.
        tokenizer: as for `cmr.attach`.
        memory_buffer: a buffer of yours; None: one as the settings say.
        scorer: what tells the relevance of captured states, see `AttachedModel`; None: as the
            settings say.
        **loading: for `load_backbone`: `quantization`, `use_quantization`, `dtype` and options of
            `from_pretrained`.

    Attributes:
        retriever: finds entries of `memory_buffer`; an `AdvancedMemoryRetriever`.
        reconstructor: makes what it found fewer; a `LayeredStateReconstructor`.
        integrator: blends that into states; a `ReconstructionIntegrator`.
        blender: joins several of them; a `ContextBlender`.

    Raises:
        ModelNotFoundError, ConfigError, UnsupportedModelError: see `load_backbone` and
            `cmr.attach`.
    """

    SCORING = "attention_based"

    def __init__(
        self,
        base_config: Any,
        cmr_config: CMRConfig | Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
        adapter: BackboneAdapter | None = None,
        *,
        output_hidden_size: int | None = 256,
        tokenizer: Any = None,
        memory_buffer: LayeredMemoryBuffer | None = None,
        scorer: Scorer | None = None,
        **loading: Any,
    ) -> None:
        options = {**loading, "device": device}
        super().__init__(
            decoder_for(base_config, None, cmr_config, options, adapter),
            cmr_config,
            output_hidden_size=output_hidden_size,
            tokenizer=tokenizer,
            memory_buffer=memory_buffer,
            scorer=scorer,
        )

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_memory_info: bool = False,
        task_type: str | None = None,
        use_memory: bool | None = None,
        *,
        sessions: Sessions = None,
        **inputs: Any,
    ) -> CMROutput:
        """A forward that recalls first and remembers afterwards.

        Args:
            input_ids: `[batch, tokens]` integers.
            attention_mask: the same shape, 0 for padding.
            return_memory_info: give `performance_stats` and `retrieval_stats`, and all there is in
                `memory_stats`. Waits for the device.
            task_type: what the request is about: passages are looked for as that task needs it
                (strategy 'task_specific'); see `cmr.register_task`.
            use_memory: True or False for this call; None: as enabled.
            sessions: one name for all rows, or one a row; None: `str(row)`.
            **inputs: of the decoder's forward. With `past_key_values` or `use_cache=True` the
                text goes on: it is stored as it leaves the window, see `Memory.absorb`.

        Raises:
            ConfigError: there is no such task.
            TypeError, ValueError: for ids or a mask that cannot be read; nothing is stored then.
        """
        output = self._run(input_ids, attention_mask, use_memory, sessions, task_type, inputs)
        if return_memory_info:
            output.memory_stats = self.get_memory_stats()
            output.performance_stats = self.performance.stats()
            output.retrieval_stats = self.get_retrieval_stats()
        return output
