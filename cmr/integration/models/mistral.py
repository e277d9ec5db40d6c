"""`MistralCMRModel`: the full model around a Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cmr.config import CMRConfig
from cmr.integration.models.backbone.backbones import BACKBONES, BackboneAdapter, MistralAdapter
from cmr.integration.models.feeder import Scorer
from cmr.integration.models.full import FullCMRModel
from cmr.memory.buffer.layered import LayeredMemoryBuffer

MODEL_NAME = str(BACKBONES["mistral"].model_name)


class MistralCMRModel(FullCMRModel):
    """`FullCMRModel` of a Mistral, Ministral or Mixtral; another family is refused.

    Args:
        base_config: a configuration, a name, a folder, or a loaded model; None: `MODEL_NAME`.
        cmr_config: settings, nested or flat.
        device: 'cpu', 'cuda', 'auto' or None.
        adapter: None: a `MistralAdapter`.
        output_hidden_size: width of `last_hidden_state`; None: the decoder's own.
        tokenizer: as for `cmr.attach`.
        memory_buffer: a buffer of yours; None: one as the settings say.
        scorer: what tells the relevance of captured states, see `AttachedModel`; None: as the
            settings say.
        **loading: for `load_backbone`.

    Raises:
        UnsupportedModelError: the decoder is of another family.
    """

    def __init__(
        self,
        base_config: Any = None,
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
        super().__init__(
            base_config,
            cmr_config,
            device,
            MistralAdapter() if adapter is None else adapter,
            output_hidden_size=output_hidden_size,
            tokenizer=tokenizer,
            memory_buffer=memory_buffer,
            scorer=scorer,
            **loading,
        )


def create_mistral_cmr_model(
    model_name: Any = MODEL_NAME,
    use_quantization: bool = True,
    device: str | torch.device | None = "auto",
    cmr_config: CMRConfig | Mapping[str, Any] | None = None,
    **options: Any,
) -> MistralCMRModel:
    """A Mistral with a memory, in 8 bits unless it is told otherwise.

    Args:
        model_name: name or folder; without quantisation also a configuration or a loaded model.
        use_quantization: weights in 8 bits, by bitsandbytes.
        device: 'auto': the GPUs where there are any, else the CPU.
        cmr_config: settings, nested or flat.
        **options: of `MistralCMRModel`, such as `quantization="4bit"`.

    Raises:
        ModelNotFoundError: the model is not to be had here; the message says what to do.
        MissingPackageError: quantised weights need a package that is not installed.
        ConfigError: what is asked for cannot be quantised.
        UnsupportedModelError: the model is no Mistral.
    """
    quantised = True if use_quantization else None
    return MistralCMRModel(model_name, cmr_config, device, use_quantization=quantised, **options)
