"""Descriptions of a decoder, turned into a transformers configuration; models made of one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from cmr.config import checks as check
from cmr.errors import ConfigError

SEED = 0
"""Random weights are always the same ones."""
SMALL: dict[str, Any] = {
    "vocab_size": 50257,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
"""A small Llama, in place of what a description leaves open."""
SYNONYMS = {"num_layers": "num_hidden_layers", "n_layer": "num_hidden_layers"}


def config_of(described: Any) -> Any:
    """The transformers configuration that is described.

    By a `PreTrainedConfig` (given back as it is), or a dictionary or `SimpleNamespace` of fields:
    with `model_type` those of that family, else a small Llama's. `ConfigError`: a field that the
    configuration does not have, or a value it refuses; `TypeError`: something else.
    """
    from transformers import PreTrainedConfig

    if isinstance(described, PreTrainedConfig):
        return described
    if isinstance(described, SimpleNamespace):
        described = vars(described)
    if not isinstance(described, Mapping):
        raise TypeError(
            "a model, a name or folder, or a configuration (of transformers, a dict or a "
            f"SimpleNamespace) expected, got {type(described).__name__}"
        )
    # Synonyms first, so that a field is checked and set alike under either name.
    fields = {SYNONYMS.get(str(name), str(name)): value for name, value in described.items()}
    family = fields.pop("model_type", None)
    return _made(fields) if family is None else _of_family(family, fields)


def _made(fields: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    if "num_attention_heads" in fields:  # without grouped queries unless they are asked for
        fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    if "hidden_size" in fields and fields["hidden_size"] != SMALL["hidden_size"]:
        fields.setdefault("intermediate_size", 2 * fields["hidden_size"])
    _known(fields, LlamaConfig())
    return _build(LlamaConfig, {**SMALL, **fields})


def _of_family(family: str, fields: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if family not in CONFIG_MAPPING:
        close = check.near(family, CONFIG_MAPPING)
        hint = "" if close is None else f"; did you mean {close!r}?"
        raise ConfigError(f"model_type {family!r} is none that transformers knows{hint}")
    _known(fields, AutoConfig.for_model(family))
    return _build(CONFIG_MAPPING[family], fields)


def _known(fields: Mapping[str, Any], usual: Any) -> None:
    """Transformers takes any field and ignores those it does not know: a typing mistake here."""
    known = {*usual.to_dict(), *getattr(usual, "attribute_map", {})}
    for name in fields:
        if name not in known:
            listed = f"help(transformers.{type(usual).__name__}) lists them"
            raise ConfigError(
                f"{name} is no field of a {usual.model_type} configuration: "
                f"{check.nearest(name, known, listed)}"
            )


def _build(kind: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return kind(**fields)
    except Exception as error:  # its own checks raise types of their own
        raise ConfigError(f"configuration of a {kind.model_type} model: {error}") from error


def random_model(config: Any, dtype: torch.dtype | str | None = None) -> nn.Module:
    """A decoder of a configuration with random weights, always the same, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    wanted = {} if dtype is None or dtype == "auto" else {"dtype": dtype}
    # The caller's random state stays as it was; weights are made on the CPU, so only that one is
    # put aside.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            # A copy: transformers writes into the configuration that it is given.
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), **wanted)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"no decoder could be made of a {type(config).__name__}: {error}"
            ) from error
    return model.eval()
