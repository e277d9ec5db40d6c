"""A model by its sizes alone: of a folder's configuration, or as they are written out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from cmr.config import CMRConfig
from cmr.errors import ConfigError, UnsupportedModelError
from cmr.integration.calibration.files import calibration_for
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.detection import adapt
from cmr.retrieval.calibration import Calibration

SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
LARGEST = 1 << 20
"""Of any size but the layers: more than a thousand of those would only take long to lay out."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Blueprint:
    """A model that has no weights: its adapter, and what was measured for it."""

    adapter: ModelAdapter
    calibration: Calibration | None


def blueprint(model: str, dtype: torch.dtype | None = None) -> Blueprint:
    """What is known of a model without loading it.

    Args:
        model: a folder with a `config.json`, a name that transformers knows, or sizes such as
            'layers=32,hidden=4096,heads=32,kv_heads=8'.
        dtype: that it would be loaded in; None: as its configuration or the sizes say.

    Raises:
        ConfigError: there is no such model, a size is missing, or they fit no decoder.
    """
    if "=" in model and not Path(model).exists():
        config, said = _of_sizes(model)
        return Blueprint(_adapter(config, dtype or said, model), None)
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "model: a model, or sizes such as layers=32,hidden=4096,heads=32, expected, "
            f"got {model}: {str(error).splitlines()[0]}"
        ) from None
    adapter = _adapter(config, dtype or config.dtype or torch.float32, model)
    # By the embeddings a model is told from others of its sizes.
    found = _with_embeddings(adapter.model, Path(model))
    measured = calibration_for(adapter, CMRConfig().retrieval) if found else None
    return Blueprint(adapter, measured)


def _of_sizes(text: str) -> tuple[Any, torch.dtype]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    given = {name.strip(): value.strip() for name, _, value in pairs}
    dtype = given.pop("dtype", "bfloat16")
    if dtype not in DTYPES:
        raise ConfigError(f"model: dtype={' or '.join(DTYPES)} expected, got {dtype!r}")
    if "heads" in given:
        given.setdefault("kv_heads", given["heads"])
    for name, value in given.items():
        most = 1000 if name == "layers" else LARGEST
        if name not in SIZES or not re.fullmatch("[0-9]{1,7}", value) or not 0 < int(value) <= most:
            known = ", ".join(f"{one}=N" for one in SIZES)
            raise ConfigError(
                f"model: {known} and dtype= expected, N at most {most:,}, got {name}={value[:40]!r}"
            )
    missing = [name for name in SIZES if name not in given and name != "head_dim"]
    if missing:
        raise ConfigError(f"model: {missing[0]}=N expected, too, got {text!r}")
    sizes = {SIZES[name]: int(value) for name, value in given.items()}
    heads, kv_heads = int(given["heads"]), int(given["kv_heads"])
    if heads % kv_heads or ("head_dim" not in given and int(given["hidden"]) % heads):
        raise ConfigError(f"model: kv_heads that divide heads, and heads that divide hidden, "
                         f"expected, got {text!r}")  # fmt: skip
    # What is not about the memory is as small as can be; no number of positions is a limit here.
    config = transformers.LlamaConfig(
        vocab_size=2,
        intermediate_size=1,
        max_position_embeddings=1 << 20,
        eos_token_id=None,
        bos_token_id=None,
        **sizes,
    )
    return config, getattr(torch, dtype)


def _adapter(config: Any, dtype: torch.dtype, name: str) -> ModelAdapter:
    try:
        with torch.device("meta"):
            return adapt(transformers.AutoModelForCausalLM.from_config(config, dtype=dtype))
    except (ValueError, UnsupportedModelError) as error:
        raise ConfigError(f"model {name}: {str(error).splitlines()[0]}") from None


def _with_embeddings(model: nn.Module, folder: Path) -> bool:
    """Give a model without weights its embeddings; False where they are not found."""
    from safetensors import safe_open

    module: Any = model
    embedding = module.get_input_embeddings()
    name = next(n for n, weight in model.named_parameters() if weight is embedding.weight)
    file, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            file = folder / json.loads(index.read_text("utf-8"))["weight_map"][name]
        with safe_open(file, "pt") as tensors:
            weight = tensors.get_tensor(name)
    except (OSError, KeyError, ValueError, RuntimeError):
        return False
    embedding.weight = nn.Parameter(weight.to(embedding.weight.dtype), requires_grad=False)
    return True
