"""Turns dictionaries of settings, nested or flat and with synonyms, into fields by topic."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from cmr.config import checks as check
from cmr.errors import ConfigError

SECTIONS = {
    f"{topic}{ending}": topic
    for topic in ("memory", "retrieval", "reweave", "next_token", "optimization")
    for ending in ("", "_config")
}
SECTIONS |= {"reconstruction": "reweave", "reconstruction_config": "reweave"}
"""Names of nested dictionaries, and the topic of each."""
SYNONYMS = {
    "buffer_size": "budget",
    "max_entries_per_layer": "budget",
    "max_states_per_layer": "budget",
    "retrieval_strategy": "strategy",
    "intervention_layers": "layers",
    "integration_method": "method",
}
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
    for section, key, value in _flat(settings, topics):
        path = f"{section}.{key}" if section else key
        name = _field(section, key)
        if name not in home:
            known = {*home, *SYNONYMS} if section else {*home, *SYNONYMS, *SECTIONS}
            raise ConfigError(f"unknown setting {path}: {check.nearest(key, known)}")
        # The same field may come twice, from two sections or by a synonym.
        topic = found.setdefault(home[name], {})
        if name in topic and not _same(topic[name], value):
            if name not in LEAST_HOLDS or not _numbers(topic[name], value):
                raise ConfigError(
                    f"{origin[name]}={topic[name]!r} and {path}={value!r} both set {name!r}: "
                    "one of them expected"
                )
            value = min(topic[name], value)
        topic[name], origin[name] = value, path
    return found


def _flat(settings: Mapping[str, Any], topics: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each setting as it was given: its section ('' for none), its key and its value."""
    for key, value in settings.items():
        if key not in SECTIONS:
            yield "", key, value
            continue
        if isinstance(value, topics.get(SECTIONS[key], ())):
            value = {name: getattr(value, name) for name in fields_of(value)}
        if not isinstance(value, Mapping):
            raise check.refuse(key, value, "a dict of settings")
        for inner, item in value.items():
            yield key, inner, item


def _field(section: str, key: str) -> str:
    """The field that a key means: the one word that two topics share is the section's own."""
    if section.startswith("reconstruction") and key == "method":
        return "reconstruction_method"
    return SYNONYMS.get(key, key)


def _same(first: Any, second: Any) -> bool:
    # 1 and True are equal, and say different things.
    return type(first) is type(second) and bool(first == second)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
