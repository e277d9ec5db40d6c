"""What a model class is configured with, told apart: memory, buffer and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cmr.config import STATE_METHODS, TOPICS, CMRConfig, resolve
from cmr.config import checks as check
from cmr.errors import ConfigError
from cmr.memory.buffer.layered import LayeredMemoryBuffer

ENTRIES, TOTAL = 1000, 5000
"""Default limits of a buffer, of a layer and of all."""


@dataclass(frozen=True)
class ModelSettings:
    """Settings of a model class: the memory's, and arguments of its `LayeredMemoryBuffer`.

    `captured` are the states that go into the buffer, None where nothing was said. `asked` are
    fields of `config.memory` as they were given, where the memory has others.
    """

    config: CMRConfig
    buffer: dict[str, Any]
    captured: tuple[int, ...] | None
    asked: dict[str, Any]

    def as_asked(self, config: CMRConfig) -> CMRConfig:
        """The memory's settings as a class like this one is to be given them."""
        memory = replace(config.memory, **self.asked)
        return replace(config, memory=memory, optimization=self.config.optimization)


def model_settings(
    given: CMRConfig | Mapping[str, Any] | None, scoring_method: str, text_config: Any
) -> ModelSettings:
    """Settings, nested or flat, with what a class takes where nothing is said.

    `target_layers` are the states that are captured. The memory stores and reads `layers` (synonym
    `intervention_layers`), by default the range that `cmr.attach` takes: layers with gaps, which
    are good enough to look at, recall nothing. Only where states are blended, for which no range
    is better than another, it blends at `target_layers` if nothing else is said.

    `ConfigError`: as `CMRConfig.from_dict`, or a layer that the decoder (`text_config`) lacks.
    """
    max_positions = getattr(text_config, "max_position_embeddings", None)
    depth = getattr(text_config, "num_hidden_layers", None)
    said = _said(given)
    config = given if isinstance(given, CMRConfig) else CMRConfig.from_dict(given or {})
    memory = said.get("memory", {})
    # The device of computation is no affair of the memory's: `device_in` reads it.
    changes: dict[str, Any] = {"device": None}
    if "scoring_method" not in memory:
        changes["scoring_method"] = scoring_method
    config = replace(config, memory=replace(config.memory, **changes))
    # In a longer window than it was made for a decoder computes nonsense.
    if "window" not in said.get("", {}) and max_positions is not None:
        config = replace(config, window=min(config.window, max_positions))
    # A budget may be a share of a device's memory: no number of entries follows from that.
    entries = memory.get("budget", ENTRIES)
    entries = entries if isinstance(entries, int) else ENTRIES
    buffer = {
        "max_entries_per_layer": entries,
        "max_total_entries": config.memory.max_total_entries or max(TOTAL, entries),
        "relevance_threshold": config.memory.relevance_threshold,
    }
    # Only where they were said: memory and buffer have other defaults.
    for name in ("eviction_strategy", "cleanup_threshold"):
        if name in memory:
            buffer[name] = memory[name]
    captured = config.memory.target_layers
    if depth is not None:
        _within("target_layers", captured, depth)
        _within("layers", config.reweave.layers, depth - 1)
    stores = _stores(config)
    asked = {name: getattr(config.memory, name) for name in stores}
    config = replace(config, memory=replace(config.memory, **stores))
    return ModelSettings(config, buffer, captured, asked)


def expect_parts(width: object, buffer: object, scorer: object) -> None:
    """Raises `ConfigError` unless a model class can be made with these; None always does."""
    if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise check.refuse("output_hidden_size", width, "an integer of at least 1 or None")
    if buffer is not None and not isinstance(buffer, LayeredMemoryBuffer):
        raise check.refuse("memory_buffer", buffer, "a LayeredMemoryBuffer or None")
    if scorer is not None and not callable(scorer):
        raise check.refuse("scorer", scorer, "something to call, or None")


def _stores(config: CMRConfig) -> dict[str, Any]:
    """Fields of the memory that differ where it stores other layers than are captured."""
    memory, captured, layers = config.memory, config.memory.target_layers, config.reweave.layers
    stored = captured if config.reweave.method in STATE_METHODS else None
    # Layers to read at are stored, and those where next-token recall compares tokens.
    if layers is not None:
        stored = tuple(sorted({*layers, *(config.next_token.knn_layers or ())}))
    changes: dict[str, Any] = {"target_layers": stored}
    total = memory.max_total_entries
    if captured is not None and total is not None and isinstance(memory.budget, int):
        # The limit is one of captured states; the memory holds as many tokens as they are of.
        tokens = total // len(captured)
        if tokens < memory.block_size:
            raise ConfigError(
                f"max_total_entries: at least {len(captured) * memory.block_size} expected, a "
                f"block of {memory.block_size} tokens in each of {len(captured)} layers, "
                f"got {total}"
            )
        changes |= {"budget": min(memory.budget, tokens), "max_total_entries": None}
    return changes


def _within(name: str, layers: tuple[int, ...] | None, last: int) -> None:
    for layer in layers or ():
        if layer > last:
            raise ConfigError(f"{name}: numbers of 0..{last} expected on this model, got {layer}")


def _said(given: Any) -> dict[str, dict[str, Any]]:
    """Fields that were given, by topic; of a `CMRConfig` those that are not the defaults."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return resolve(given, TOPICS)
    if not isinstance(given, CMRConfig):
        raise check.refuse("the memory's settings", given, "a CMRConfig, a dictionary or None")
    # A `CMRConfig` does not say what was given: what differs from the defaults was.
    fields, usual = (resolve(one.to_dict(), TOPICS) for one in (given, CMRConfig()))
    return {
        topic: {name: value for name, value in part.items() if value != usual[topic][name]}
        for topic, part in fields.items()
    }


def device_in(given: CMRConfig | Mapping[str, Any] | None) -> str | None:
    """The device of computation that settings name, None where they name none."""
    if given is None:
        return None
    config = given if isinstance(given, CMRConfig) else CMRConfig.from_dict(given)
    return config.memory.device
