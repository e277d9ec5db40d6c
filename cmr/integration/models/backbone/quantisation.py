"""Weights in 8 or 4 bits, by bitsandbytes where it can work."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from cmr.errors import ConfigError, MissingPackageError

BITS = ("8bit", "4bit")
NEEDED = ("bitsandbytes", "accelerate")


def quantisation(wanted: Any, use_quantization: bool | None = None) -> Any:
    """The quantisation that is asked for, as transformers takes it; None: none.

    `use_quantization` True takes '8bit' where nothing is `wanted`, and False refuses whatever is.
    Errors are as of `load_backbone`.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if wanted is None and not use_quantization:
        return None
    if use_quantization is False:
        raise ConfigError(
            f"use_quantization=False and quantization={wanted!r}: one of them expected"
        )
    kind = "8bit" if wanted is None else wanted
    if kind not in BITS and isinstance(kind, str):
        raise ConfigError(
            f"quantization: '8bit', '4bit', a configuration or None expected, got {kind!r}"
        )
    if not isinstance(kind, str | QuantizationConfigMixin):
        raise ConfigError(
            "quantization: '8bit', '4bit', a configuration of transformers or None expected, "
            f"got {type(kind).__name__}"
        )
    if not isinstance(kind, str | BitsAndBytesConfig):
        return kind  # another method's own checks hold
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"quantised weights need {' and '.join(missing)}: pip install 'cmr[quant]', or ask for "
            "none (use_quantization=False)"
        )
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    # Of the two 4-bit types nf4 is the one made for normally distributed weights.
    if kind == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return kind


def ready_to_save(model: nn.Module) -> None:
    """Put the scales of 4-bit weights in the order in which they are saved."""
    # On CPUs with bfloat16 instructions bitsandbytes repacks a weight at its first forward. Up to
    # 0.50.2 it takes that back when the weight is saved, but leaves the scales transposed unless
    # they are quantised themselves: what it saves is another model, and so is what stays in
    # memory. With scales that are in order already, that step leaves them alone.
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        packed = getattr(state, "packing_format_for_cpu", False)
        if state is not None and packed and not getattr(state, "original_nested", True):
            state.absmax = state.absmax.T.reshape(-1).float()
