"""Where calibrations lie, and which one a model works with."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import torch

from cmr._folders import cache_root
from cmr.config import RetrievalConfig
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.placement import whole_weight
from cmr.retrieval.calibration import Calibration

SHIPPED = Path(__file__).parents[2] / "calibrations"
"""The calibrations that come with the package."""
EMBEDDING_SAMPLE = 8_192
"""Numbers looked at of the embeddings for `identity`, spread over them."""
_SMALLEST = 2.0**-14
_TOLD = 12
_log = logging.getLogger(__name__)


def calibration_for(adapter: ModelAdapter, config: RetrievalConfig) -> Calibration | None:
    """What was measured for a model, as far as the settings let it hold.

    Nothing holds where `index_layer` names another layer than the one that was measured. Raises
    `ConfigError` where the file that `calibration` names holds none, or one of another model.
    """
    if config.calibration in ("sampled", "none"):
        return None
    if config.calibration == "auto":
        found = find(adapter)
        fits = found is not None and config.index_layer in (None, found.index_layer)
        return found if fits else None
    found = Calibration.load(config.calibration)
    if found.identity != identity(adapter):
        raise ConfigError(
            f"calibration: one of this model expected, got one of {found.model!r} "
            f"in {config.calibration}"
        )
    if config.index_layer not in (None, found.index_layer):
        raise ConfigError(
            f"index_layer: {found.index_layer} expected, as {config.calibration} says, "
            f"got {config.index_layer}"
        )
    return found


def find(adapter: ModelAdapter) -> Calibration | None:
    """The calibration of a model: the user's own, else the shipped one, else None."""
    # A file that cannot be read is passed over with a warning: a search works without it, too.
    wanted = identity(adapter)
    for place in (folder(), SHIPPED):
        for path in sorted(place.glob(f"*-{wanted[:_TOLD]}.safetensors")):
            try:
                found = Calibration.load(path)
            except ConfigError as error:
                _log.warning("%s", error)
                continue
            if found.identity == wanted:
                return found
    return None


def folder() -> Path:
    """Where `cmr.calibrate` saves: `calibrations` in the cache folder, see `cache_root`."""
    return cache_root() / "calibrations"


def file_name(calibration: Calibration) -> str:
    """`<model's name>-<first 12 digits of its identity>.safetensors`."""
    name = re.sub(r"[^\w.-]+", "-", Path(calibration.model).name).strip("-.") or "model"
    return f"{name}-{calibration.identity[:_TOLD]}.safetensors"


def identity(adapter: ModelAdapter) -> str:
    """64 hexadecimal digits of what stays the same in any dtype, quantised or not."""
    # Covered are the family, the shapes and a sample of the embeddings, which are not quantised,
    # rounded to bfloat16. Fine-tuned models whose embeddings were left alone have that of the model
    # they were made from: its calibration fits them.
    weight = whole_weight(adapter.model.get_input_embeddings())
    flat = weight.reshape(-1)
    sample = flat[:: max(1, flat.numel() // EMBEDDING_SAMPLE)][:EMBEDDING_SAMPLE]
    rounded = sample.to("cpu", torch.bfloat16)
    # What float16 cannot hold with all of bfloat16's digits does not count.
    rounded = torch.where(rounded.abs() < _SMALLEST, torch.zeros_like(rounded), rounded)
    # Of all processes together: however many a model is divided among, it is the same one.
    heads = (adapter.heads * adapter.processes, adapter.kv_heads * adapter.processes)
    shape = (adapter.hidden, adapter.depth, *heads, adapter.head_dim)
    digest = hashlib.sha256(f"{adapter.config.model_type} {shape} {list(weight.shape)}".encode())
    digest.update(rounded.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
