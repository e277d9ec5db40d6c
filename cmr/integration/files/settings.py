"""Settings as a header has them: without a word of where anything lies on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmr.config import CMRConfig
from cmr.errors import ConfigError, CorruptMemoryError
from cmr.memory.store import Saved
from cmr.memory.store.schema import CALIBRATIONS


def to_header(config: CMRConfig) -> dict[str, Any]:
    """The settings to be saved; of a calibration's file only that there is one."""
    plain = config.to_dict()
    del plain["graphs"]  # a matter of the machine
    del plain["memory"]["long_term_folder"]
    if plain["retrieval"]["calibration"] not in CALIBRATIONS:
        plain["retrieval"]["calibration"] = CALIBRATIONS[-1]
    return plain


def from_header(saved: Saved, overrides: Mapping[str, Any]) -> CMRConfig:
    """The settings that a memory was saved with, and those of the caller in their place."""
    given, usual = saved.header["config"], {}
    # Also what was saved before there were calibrations. What a model's own measure says of its
    # layers came later, or not from here: the states that are indexed are searched.
    if not saved.header["calibrated"]:
        chosen = (given.get("retrieval") or {}).get("calibration")
        usual = {
            "calibration": chosen if chosen == "none" else "sampled",
            "index_layer": saved.header["index_layer"],
        }
    return read(given, saved.path, {**usual, **overrides})


def read(given: Mapping[str, Any], where: object, overrides: Mapping[str, Any]) -> CMRConfig:
    """Settings from a file `where`, and those of the caller in their place.

    Raises `ConfigError` for settings that cannot be, and where a calibration is to be given again;
    `CorruptMemoryError` where they name a file of this machine.
    """
    settings = CMRConfig.from_dict(given)
    calibration, folder = settings.retrieval.calibration, settings.memory.long_term_folder
    if calibration not in CALIBRATIONS:
        known = ", ".join(map(repr, CALIBRATIONS))
        raise CorruptMemoryError(
            f"{where}: calibration: one of {known} expected, got {calibration[:40]!r}"
        )
    if folder is not None:
        raise CorruptMemoryError(f"{where}: no long_term_folder expected, got {folder[:40]!r}")
    if calibration == CALIBRATIONS[-1] and "calibration" not in overrides:
        raise ConfigError(
            f"calibration: the file that {where} was saved with expected, as calibration=FILE: "
            "a saved memory does not say where it lies"
        )
    return settings.with_overrides(**overrides)
