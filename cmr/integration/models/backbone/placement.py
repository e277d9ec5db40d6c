"""The decoder that a model class is asked for, where its settings want it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from cmr.config import CMRConfig
from cmr.errors import ConfigError
from cmr.integration.models.backbone.backbones import BackboneAdapter
from cmr.integration.models.settings import device_in


def decoder_for(
    source: Any,
    model_name: str | None,
    settings: CMRConfig | Mapping[str, Any] | None,
    loading: Mapping[str, Any],
    adapter: BackboneAdapter | None = None,
) -> nn.Module:
    """The decoder, on the device that the arguments or the settings name.

    Args:
        source: see `load_backbone`; the configuration where there is a `model_name`.
        model_name: name or folder of weights, or None.
        settings: of the memory; `device` in them is the device of computation.
        loading: further arguments of `load_backbone`.
        adapter: the kind of decoder that is expected; None: any.

    Raises:
        ConfigError: two devices, or two models, are asked for.
    """
    if adapter is not None and not isinstance(adapter, BackboneAdapter):
        raise TypeError(f"adapter: a BackboneAdapter or None expected, got {adapter!r}")
    kind = BackboneAdapter() if adapter is None else adapter
    options = dict(loading)
    named = device_in(settings)
    asked = options.get("device")
    if named is not None:
        if asked is not None and str(asked) != named:
            raise ConfigError(f"device={str(asked)!r} and the settings' {named!r}: one expected")
        options["device"] = named
    if model_name is None:
        return kind.load(source, **options)
    if isinstance(source, nn.Module):
        raise ConfigError(f"model_name={model_name!r} and a loaded model: one of them expected")
    return kind.load(model_name, config=source, **options)
