"""Turns dictionaries of settings, nested or flat and with synonyms, into fields by topic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cmr.config import checks as check
from cmr.errors import ConfigError

SECTIONS = {
    "memory": "memory",
    "memory_config": "memory",
    "retrieval": "retrieval",
    "retrieval_config": "retrieval",
    "reweave": "reweave",
    "reweave_config": "reweave",
    "reconstruction": "reweave",
    "reconstruction_config": "reweave",
    "next_token": "next_token",
    "next_token_config": "next_token",
    "optimization": "optimization",
    "optimization_config": "optimization",
}
SYNONYMS = {
    "buffer_size": "budget",
    "max_entries_per_layer": "budget",
    "max_states_per_layer": "budget",
    "retrieval_strategy": "strategy",
    "intervention_layers": "layers",
    "integration_method": "method",
}
AVAILABLE: dict[str, dict[str, tuple[object, ...]]] = {
    "memory": {
        "device": (None,),
    },
    "optimization": {
        "enable_adaptive_thresholds": (False,),
        "enable_batch_optimization": (False,),
        "enable_prefetching": (False,),
        "enable_background_optimization": (False,),
    },
}
"""Values that this version implements, for the fields where that is not every legal value."""
INSTEAD = {
    "optimization": "a memory does not steer itself, give this to "
    "cmr.CMRPerformanceOptimizer(model, optimization_config)",
}
"""Who takes the settings of a topic where an attached memory does not."""
LEAST_HOLDS = {"budget"}
"""Upper bounds: given under several names, the least holds."""


def fields_of(kind: Any) -> tuple[str, ...]:
    """Field names of a dataclass or an instance of one."""
    return tuple(item.name for item in dataclasses.fields(kind))


def resolve(settings: Mapping[str, Any], topics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fields by topic ('' for those of the whole), from nested or flat settings.

    Args:
        settings: see `CMRConfig.from_dict`.
        topics: topic name -> its dataclass.

    Returns:
        topic -> field -> value, only of what was given.

    Raises:
        ConfigError: unknown key, a section that is no dictionary, or two values for one field.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"settings: a dict expected, got {type(settings).__name__}")
    home = {name: topic for topic, kind in topics.items() for name in fields_of(kind)}
    home["window"] = home["unnamed"] = ""
    found: dict[str, dict[str, Any]] = {}
    origin: dict[str, str] = {}

    def put(key: str, name: str, value: Any) -> None:
        topic = found.setdefault(home[name], {})
        if name in topic and not _same(topic[name], value):
            if name not in LEAST_HOLDS or not _numbers(topic[name], value):
                raise ConfigError(
                    f"{origin[name]}={topic[name]!r} and {key}={value!r} both set {name!r}: "
                    "one of them expected"
                )
            value = min(topic[name], value)
        topic[name] = value
        origin[name] = key

    def walk(part: Mapping[str, Any], section: str, path: str) -> None:
        for key, value in part.items():
            name = SYNONYMS.get(key, key)
            if section.startswith("reconstruction") and key == "method":
                name = "reconstruction_method"
            if not section and key in SECTIONS:
                if dataclasses.is_dataclass(value) and isinstance(value, topics[SECTIONS[key]]):
                    value = {item: getattr(value, item) for item in fields_of(value)}
                if not isinstance(value, Mapping):
                    raise check.refuse(str(key), value, "a dict of settings")
                walk(value, key, f"{key}.")
            elif name in home:
                put(f"{path}{key}", name, value)
            else:
                known = {*home, *SYNONYMS} if section else {*home, *SYNONYMS, *SECTIONS}
                raise ConfigError(f"unknown setting {path}{key}: {check.nearest(key, known)}")

    walk(settings, "", "")
    return found


def _same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and bool(first == second)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
