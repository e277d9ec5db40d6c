"""Whether a model is one that a memory can be attached to, looked at before anything is done."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from cmr.errors import UnsupportedModelError
from cmr.integration.decoder.families import FAMILIES, Family

SUPPORTED_ATTENTION = ("sdpa", "eager")


def require_decoder(model: Any) -> Any:
    """The configuration of a model's decoder.

    Raises:
        UnsupportedModelError: for what is no transformers decoder with a language-model head.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(config, "model_type"):
        raise UnsupportedModelError(
            f"a transformers decoder expected (AutoModelForCausalLM), got {type(model).__name__}"
        )
    if getattr(config, "is_encoder_decoder", False) or not hasattr(model, "generate"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a decoder with a language-model head; "
            "load it with AutoModelForCausalLM"
        )
    head: Any = getattr(model, "get_output_embeddings", None)
    can_generate: Any = getattr(model, "can_generate", None)
    if not (can_generate is None or can_generate()) or head is None or head() is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no language-model head to generate with; "
            "load it with AutoModelForCausalLM"
        )
    return config.get_text_config(decoder=True)


def row_of(config: Any) -> Family:
    """The row of a decoder's family.

    Raises:
        UnsupportedModelError: it has none.
    """
    name = config.model_type
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UnsupportedModelError(
            f"model family {name!r} is not covered yet; covered: {covered()}{hint}. "
            "A family is a row in cmr/integration/decoder/families.py and a test"
        )
    return FAMILIES[name]


def require_settings(config: Any, family: Family) -> None:
    """Raises `UnsupportedModelError` where a covered family is configured in an uncovered way."""
    name = config.model_type
    for field, value, why in family.refused:
        if getattr(config, field, None) == value:
            raise UnsupportedModelError(f"{name} with {field}={value} is not covered: {why}")
    if "dynamic" in rope_types(config):
        raise UnsupportedModelError(
            f"{name} with rope_type 'dynamic' is not covered: its rotation depends on the longest "
            "text that the model has seen, so a stored key cannot be rotated back; set another "
            "rope_type, such as 'yarn', in the configuration"
        )
    attention = config._attn_implementation
    supported = SUPPORTED_ATTENTION if family.plug == "interface" else ("sdpa",)
    if attention.removeprefix("cmr_") not in supported:
        either = " or ".join(map(repr, supported))
        raise UnsupportedModelError(
            f"attn_implementation {attention!r} is not covered; load the model with {either}, or "
            "call model.set_attn_implementation before attaching"
        )


def rope_types(config: Any) -> set[str]:
    """The kinds of rotary embedding of a configuration, those of all kinds of layers."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [given, *(part for part in given.values() if isinstance(part, dict))]
    kinds = (part.get("rope_type", part.get("type")) for part in parts)
    return {kind for kind in kinds if isinstance(kind, str)}


def covered() -> str:
    """The families with a row, for people."""
    return ", ".join(sorted(FAMILIES))
