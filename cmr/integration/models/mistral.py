"""`MistralCMRModel`: the full model around a Mistral."""

from __future__ import annotations

from typing import Any

import torch

from cmr.integration.models.backbone.backbones import BACKBONES, BackboneAdapter, MistralAdapter
from cmr.integration.models.full import FullCMRModel
from cmr.integration.models.memory_model import Given

MODEL_NAME = str(BACKBONES["mistral"].model_name)


class MistralCMRModel(FullCMRModel):
    """`FullCMRModel` of a Mistral, Ministral or Mixtral; `base_config` None is `MODEL_NAME`.

    A decoder of another family raises `UnsupportedModelError`.
    """

    def __init__(
        self,
        base_config: Any = None,
        cmr_config: Given = None,
        device: str | torch.device | None = None,
        adapter: BackboneAdapter | None = None,
        **options: Any,
    ) -> None:
        adapter = MistralAdapter() if adapter is None else adapter
        super().__init__(base_config, cmr_config, device, adapter, **options)


def create_mistral_cmr_model(
    model_name: Any = MODEL_NAME,
    use_quantization: bool = True,
    device: str | torch.device | None = "auto",
    cmr_config: Given = None,
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
        ModelNotFoundError, MissingPackageError, ConfigError: see `load_backbone`.
        UnsupportedModelError: the model is no Mistral.
    """
    # False would contradict `quantization="4bit"` among the options; None leaves it to them.
    quantised = True if use_quantization else None
    return MistralCMRModel(model_name, cmr_config, device, use_quantization=quantised, **options)
