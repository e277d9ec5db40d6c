"""What of a model is stored where: decided once, when a memory is attached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cmr.config import STATE_METHODS, CMRConfig, MemoryConfig, ReweaveConfig
from cmr.errors import ConfigError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.memory.allocation import LayerShape, Lower
from cmr.memory.keeper import Policy
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.successors import compared_layers

COLUMN_BYTES = 6 * 8 + 4
"""Bytes that the shared columns take for a block, beside token ids and positions."""


@dataclass(frozen=True)
class Layout:
    """The layers and tiers of one memory.

    Attributes:
        residual: whether stored states are blended into what enters a layer, instead of read by
            its attention.
        store: `kv`, `states` or `tokens`.
        targets: layers that are stored and may be read.
        read_layers: layers that read.
        knn_layers: layers at which new tokens are compared with stored ones for next-token memory.
        index_layer: layer whose states are searched.
        shapes: layer number to what is stored of a token there.
        width: of the index.
        index_dtype: of the index.
        recent: blocks of the first tier.
        lower: the tiers under it.
        policy: what leaves first.
    """

    residual: bool
    store: str
    targets: tuple[int, ...]
    read_layers: frozenset[int]
    knn_layers: tuple[int, ...]
    index_layer: int
    shapes: Mapping[int, LayerShape]
    width: int
    index_dtype: torch.dtype
    recent: int
    lower: Lower
    policy: Policy

    @property
    def state_layers(self) -> tuple[int, ...]:
        """Layers whose hidden states are stored."""
        return tuple(self.shapes) if self.store == "states" else ()

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """Layers whose keys and values are stored."""
        return tuple(self.shapes) if self.store == "kv" else ()


def plan_layout(adapter: ModelAdapter, config: CMRConfig, measured: Calibration | None) -> Layout:
    """The layout of a model by its settings, and by what was measured where they are silent.

    Raises `ConfigError` for settings that do not fit, or a budget that does not pay for a block.
    """
    memory, reweave = config.memory, config.reweave
    for name, tokens in (("window", config.window), ("recall_context", memory.recall_context)):
        if tokens > adapter.max_positions:
            raise ConfigError(
                f"{name}: at most this model's {adapter.max_positions} positions expected, "
                f"got {tokens}"
            )
    residual = reweave.method in STATE_METHODS
    if residual and memory.store not in ("auto", "states"):
        raise ConfigError(
            f"method={reweave.method!r} blends hidden states: store 'auto' or 'states' "
            f"expected, got {memory.store!r}"
        )
    store = "states" if residual else adapter.store_kind(memory.store)
    wanted = memory.target_layers or (measured.target_layers if measured else None)
    targets = adapter.target_layers(wanted)
    readers = _readers(reweave, targets)
    compared = compared_layers(config.next_token, targets, adapter.depth)
    index_layer = adapter.index_layer(
        measured.index_layer if measured else config.retrieval.index_layer
    )
    width = measured.width(adapter.hidden) if measured else adapter.hidden
    index_dtype = (
        adapter.dtype if memory.index_dtype == "model" else getattr(torch, memory.index_dtype)
    )
    kept = targets if store != "tokens" else ()
    shapes = {n: adapter.layer_shape(n, store) for n in kept}
    recent, lower, policy = _tiers(memory, shapes, width * index_dtype.itemsize, width, targets)
    if residual and lower.long_term and not lower.long_term_states:
        raise ConfigError(
            f"long_term_store: 'kv' expected with method={reweave.method!r}, which reads "
            f"stored states, got {memory.long_term_store!r}"
        )
    return Layout(
        residual=residual,
        store=store,
        targets=targets,
        read_layers=readers,
        knn_layers=compared,
        index_layer=index_layer,
        shapes=shapes,
        width=width,
        index_dtype=index_dtype,
        recent=recent,
        lower=lower,
        policy=policy,
    )


def _readers(reweave: ReweaveConfig, targets: tuple[int, ...]) -> frozenset[int]:
    if reweave.memory_weight == 0:
        return frozenset()
    wanted = targets if reweave.layers is None else reweave.layers
    missing = sorted(set(wanted) - set(targets))
    if missing:
        raise ConfigError(
            f"layers: layers that are captured expected ({list(targets)}), "
            f"got {list(wanted)}: {missing} store nothing to read"
        )
    return frozenset(wanted)


def _tiers(
    config: MemoryConfig,
    shapes: Mapping[int, LayerShape],
    index_bytes: int,
    width: int,
    targets: tuple[int, ...],
) -> tuple[int, Lower, Policy]:
    """Blocks of the first tier, the tiers under it, and what leaves them first."""
    size = config.block_size
    states = size * sum(shape.token_bytes() for shape in shapes.values())
    columns = COLUMN_BYTES + size * 2 * 8
    whole = states + columns + size * index_bytes
    keeps = config.long_term_store == "kv"
    # On a disk the index has one byte a number, and a float32 scale a token.
    reduced = columns + size * (width + 4) + (states if keeps else 0)

    def blocks(name: str, amount: int | str, each: int) -> int:
        found = config.blocks(amount, each)
        if amount != 0 and found < 1:
            raise ConfigError(
                f"{name}: room for a block, {each:,} bytes here, expected, got {amount!r}"
            )
        return found

    recent = blocks("budget", config.budget, whole)
    if config.max_total_entries is not None:
        # An entry of the specification is one token at one layer.
        recent = min(recent, config.max_total_entries // len(targets) // size)
        if recent < 1:
            raise ConfigError(
                f"max_total_entries: at least {len(targets) * size} expected, a block of {size} "
                f"tokens in each of {len(targets)} layers, got {config.max_total_entries}"
            )
    lower = Lower(
        working=blocks("working_budget", config.working_budget, whole),
        long_term=blocks("long_term_budget", config.long_term_budget, reduced),
        long_term_states=keeps and bool(shapes),
        folder=config.long_term_folder,
    )
    session = config.session_budget
    policy = Policy(
        config.eviction_strategy,
        config.relevance_threshold,
        config.cleanup_threshold,
        None if session is None else blocks("session_budget", session, whole),
    )
    return recent, lower, policy
