"""Kinds of decoders: what they are called, how they are loaded, what memory takes for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cmr.config import CMRConfig
from cmr.errors import ConfigError, UnsupportedModelError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.detection import adapt
from cmr.integration.models.backbone.descriptions import config_of
from cmr.integration.models.backbone.loaded import load_backbone
from cmr.integration.models.settings import device_in


@dataclass(frozen=True)
class Backbone:
    """A kind of decoder, with its attributes as `BackboneAdapter` has them."""

    model_types: tuple[str, ...] = ()
    model_name: str | None = None


BACKBONES: dict[str, Backbone] = {
    "any": Backbone(),
    "falcon": Backbone(("falcon",), "tiiuae/falcon-7b-instruct"),
    "gemma": Backbone(("gemma2", "gemma3_text"), "google/gemma-2-2b-it"),
    "gpt2": Backbone(("gpt2",), "openai-community/gpt2"),
    "gpt_neox": Backbone(("gpt_neox",), "EleutherAI/pythia-410m"),
    "llama": Backbone(("llama",), "meta-llama/Llama-3.2-1B-Instruct"),
    "mistral": Backbone(
        ("mistral", "ministral", "ministral3", "mixtral"), "mistralai/Ministral-8B-Instruct-2410"
    ),
    "olmo2": Backbone(("olmo2",), "allenai/OLMo-2-0425-1B-Instruct"),
    "phi3": Backbone(("phi3",), "microsoft/Phi-3-mini-4k-instruct"),
    "qwen": Backbone(("qwen2", "qwen3"), "Qwen/Qwen3-0.6B"),
    "smollm3": Backbone(("smollm3",), "HuggingFaceTB/SmolLM3-3B"),
}
"""Each of these model types is a row of `cmr.integration.decoder.families`."""


class BackboneAdapter:
    """One kind of decoder, loaded and seen by a model class.

    Args:
        name: a key of `BACKBONES`.

    Attributes:
        name: as given.
        model_types: of the configurations that belong to it; empty: any that is covered.
        model_name: on the Hugging Face hub, where nobody says which one; None: there is none.

    Raises:
        ConfigError: there is no such kind.
    """

    NAME = "any"

    def __init__(self, name: str | None = None) -> None:
        self.name = self.NAME if name is None else name
        # A subclass is one kind and takes no other name.
        if self.name not in BACKBONES or (self.NAME != "any" and self.name != self.NAME):
            known = ", ".join(BACKBONES) if self.NAME == "any" else self.NAME
            raise ConfigError(f"name: one of {known} expected, got {name!r}")
        row = BACKBONES[self.name]
        self.model_types, self.model_name = row.model_types, row.model_name

    @classmethod
    def of(cls, model: Any) -> BackboneAdapter:
        """The kind that a model, or a configuration, belongs to; 'any' where it has none.

        `UnsupportedModelError`: a subclass for one kind was asked, and it belongs to another.
        """
        kind = _model_type(model)
        for name, row in BACKBONES.items():
            if kind in row.model_types and cls.NAME in ("any", name):
                return cls(name)
        adapter = cls()
        adapter.require(model)
        return adapter

    def fits(self, model: Any) -> bool:
        """Whether a model, or a configuration, belongs to this kind."""
        return not self.model_types or _model_type(model) in self.model_types

    def require(self, model: Any) -> None:
        """Raises `UnsupportedModelError` where a model or a configuration does not belong here."""
        if not self.fits(model):
            raise UnsupportedModelError(
                f"{type(self).__name__} {self.name!r}: a model of "
                f"{' or '.join(map(repr, self.model_types))} expected, got one of "
                f"{_model_type(model)!r}"
            )

    def load(self, source: Any = None, **loading: Any) -> nn.Module:
        """A decoder of this kind, see `load_backbone`; `source` None: `model_name`.

        `UnsupportedModelError` for another kind is raised before weights are loaded.
        """
        if source is None:
            if self.model_name is None:
                raise ConfigError("a model, its name or a configuration expected, got None")
            source = self.model_name
        if not isinstance(source, str | os.PathLike | nn.Module):
            # A description that names no family is of this kind.
            if isinstance(source, Mapping) and self.model_types:
                source = {"model_type": self.model_types[0], **source}
            source = config_of(source)
        return load_backbone(source, expect=self.require if self.model_types else None, **loading)

    def view(self, model: nn.Module) -> ModelAdapter:
        """What the memory needs to know of a model: blocks, shapes, rotary embedding, projections.

        `UnsupportedModelError`: it is of another kind, or not covered.
        """
        self.require(model)
        return adapt(model)


class MistralAdapter(BackboneAdapter):
    """Mistral, Ministral and Mixtral."""

    NAME = "mistral"


class GemmaAdapter(BackboneAdapter):
    """Gemma 2 and the text models of Gemma 3."""

    NAME = "gemma"


def decoder_for(
    source: Any,
    model_name: str | None,
    settings: CMRConfig | Mapping[str, Any] | None,
    adapter: BackboneAdapter | None,
    **options: Any,
) -> nn.Module:
    """The decoder that a model class is asked for, on the device that it or its settings name.

    With a `model_name` the `source` is the configuration to load it with. Options are those of
    `load_backbone`. `ConfigError`: two devices, or two models, are asked for.
    """
    if adapter is not None and not isinstance(adapter, BackboneAdapter):
        raise TypeError(f"adapter: a BackboneAdapter or None expected, got {adapter!r}")
    kind = BackboneAdapter() if adapter is None else adapter
    # The specification names the device in the memory's settings, too.
    named, asked = device_in(settings), options.get("device")
    if named is not None:
        if asked is not None and str(asked) != named:
            raise ConfigError(f"device={str(asked)!r} and the settings' {named!r}: one expected")
        options["device"] = named
    if model_name is None:
        return kind.load(source, **options)
    if isinstance(source, nn.Module):
        raise ConfigError(f"model_name={model_name!r} and a loaded model: one of them expected")
    return kind.load(model_name, config=source, **options)


def _model_type(model: Any) -> str:
    config = getattr(model, "config", model)
    text = getattr(config, "get_text_config", None)
    return str(getattr(config if text is None else text(decoder=True), "model_type", ""))
