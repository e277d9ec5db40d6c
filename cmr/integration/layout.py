"""From budgets in tokens or bytes to tiers of whole blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cmr.config import MemoryConfig
from cmr.errors import ConfigError
from cmr.memory.allocation import LayerShape, Lower
from cmr.memory.keeper import Policy

COLUMN_BYTES = 7 * 8 + 4
"""Bytes that the shared columns take for a block, beside token ids and positions."""


@dataclass(frozen=True)
class Plan:
    """How a store is laid out.

    Attributes:
        recent: blocks of the first tier.
        lower: the tiers under it.
        policy: what leaves first.
    """

    recent: int
    lower: Lower
    policy: Policy


def plan_tiers(
    config: MemoryConfig,
    layers: Mapping[int, LayerShape],
    hidden: int,
    index_dtype: torch.dtype,
    targets: int,
) -> Plan:
    """The layout that the budgets pay for.

    Args:
        config: the settings.
        layers: layer number to what it stores.
        hidden: width of the index.
        index_dtype: of the index.
        targets: number of target layers, whether they store or not.

    Raises:
        ConfigError: a budget that does not pay for a single block.
    """
    size = config.block_size
    states = size * sum(shape.token_bytes() for shape in layers.values())
    columns = COLUMN_BYTES + size * 2 * 8
    whole = states + columns + size * hidden * index_dtype.itemsize
    keeps = config.long_term_store == "kv"
    reduced = columns + size * (hidden + 4) + (states if keeps else 0)

    def blocks(name: str, amount: int | str, each: int) -> int:
        found = config.blocks(amount, each)
        if amount != 0 and found < 1:
            raise ConfigError(f"{name}: a block takes {each:,} bytes here, got {amount!r}")
        return found

    recent = blocks("budget", config.budget, whole)
    if config.max_total_entries is not None:
        recent = min(recent, config.max_total_entries // targets // size)
        if recent < 1:
            raise ConfigError(
                f"max_total_entries: at least {targets * size} expected, a block of {size} tokens "
                f"in each of {targets} layers, got {config.max_total_entries}"
            )
    lower = Lower(
        working=blocks("working_budget", config.working_budget, whole),
        long_term=blocks("long_term_budget", config.long_term_budget, reduced),
        long_term_states=keeps and bool(layers),
        folder=config.long_term_folder,
    )
    session = config.session_budget
    policy = Policy(
        config.eviction_strategy,
        config.relevance_threshold,
        config.cleanup_threshold,
        None if session is None else blocks("session_budget", session, whole),
    )
    return Plan(recent, lower, policy)
