"""Where calibrations lie, and which one belongs to a model."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from cmr._folders import cache_root
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.fingerprint import identity
from cmr.retrieval.calibration import Calibration

SHIPPED = Path(__file__).parents[2] / "calibrations"
"""The calibrations that come with the package."""
_TOLD = 12
_log = logging.getLogger(__name__)


def folder() -> Path:
    """Where `cmr.calibrate` saves: `calibrations` in the cache folder, see `cache_root`."""
    return cache_root() / "calibrations"


def file_name(calibration: Calibration) -> str:
    """`<model's name>-<first 12 digits of its identity>.safetensors`."""
    name = re.sub(r"[^\w.-]+", "-", Path(calibration.model).name).strip("-.") or "model"
    return f"{name}-{calibration.identity[:_TOLD]}.safetensors"


def find(adapter: ModelAdapter) -> Calibration | None:
    """The calibration of a model: the user's own, else the shipped one, else None.

    A file that cannot be read is passed over with a warning: a search works without it, too.

    Args:
        adapter: the model, however it was loaded (see `decoder.fingerprint.identity`).
    """
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
