"""What a model class is configured with, told apart: memory, buffer and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cmr import _checks as check
from cmr import _config_keys as keys
from cmr.config import TOPICS, CMRConfig

ENTRIES, TOTAL = 1000, 5000
"""Default limits of a buffer, of a layer and of all."""


@dataclass(frozen=True)
class Settings:
    """Settings of a model class.

    Attributes:
        config: of the memory.
        device: the device of computation that they ask for, or None.
        buffer: arguments of `LayeredMemoryBuffer`.
    """

    config: CMRConfig
    device: str | None
    buffer: dict[str, Any]


def settings_of(
    given: CMRConfig | Mapping[str, Any] | None, scoring_method: str, max_positions: int | None
) -> Settings:
    """Settings, nested or flat, with what a class takes where nothing is said.

    Args:
        given: a `CMRConfig`, a dictionary for `CMRConfig.from_dict`, or None. In it `device` is the
            device of computation.
        scoring_method: where none is given.
        max_positions: the longest text the model was made for: a window that is not given is no
            longer. None: not known.

    Raises:
        ConfigError: as `CMRConfig.from_dict`.
    """
    said = _said(given)
    config = given if isinstance(given, CMRConfig) else CMRConfig.from_dict(given or {})
    memory = said.get("memory", {})
    device = config.memory.device
    changes: dict[str, Any] = {"device": None}
    if "scoring_method" not in memory:
        changes["scoring_method"] = scoring_method
    config = replace(config, memory=replace(config.memory, **changes))
    if "window" not in said.get("", {}) and max_positions is not None:
        config = replace(config, window=min(config.window, max_positions))
    entries = memory.get("budget", ENTRIES)
    entries = entries if isinstance(entries, int) else ENTRIES
    buffer = {
        "max_entries_per_layer": entries,
        "max_total_entries": config.memory.max_total_entries or max(TOTAL, entries),
        "relevance_threshold": config.memory.relevance_threshold,
    }
    for name in ("eviction_strategy", "cleanup_threshold"):
        if name in memory:
            buffer[name] = memory[name]
    return Settings(config, device, buffer)


def _said(given: Any) -> dict[str, dict[str, Any]]:
    """Fields that were given, by topic; of a `CMRConfig` those that are not the defaults."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return keys.resolve(given, TOPICS)
    if not isinstance(given, CMRConfig):
        raise check.refuse("the memory's settings", given, "a CMRConfig, a dictionary or None")
    usual = CMRConfig()
    found: dict[str, dict[str, Any]] = {}
    for topic in TOPICS:
        part, default = getattr(given, topic), getattr(usual, topic)
        names = [name for name in keys.fields_of(part)
                 if getattr(part, name) != getattr(default, name)]  # fmt: skip
        found[topic] = {name: getattr(part, name) for name in names}
    own = {name: getattr(given, name) for name in ("window", "unnamed")}
    found[""] = {name: value for name, value in own.items() if value != getattr(usual, name)}
    return found


def device_in(given: CMRConfig | Mapping[str, Any] | None) -> str | None:
    """The device of computation that settings name, None where they name none.

    Raises:
        ConfigError: as `CMRConfig.from_dict`.
    """
    if given is None:
        return None
    config = given if isinstance(given, CMRConfig) else CMRConfig.from_dict(given)
    return config.memory.device
