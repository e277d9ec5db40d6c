"""One view of every covered decoder: its blocks, shapes, rotary embedding and projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from cmr.errors import AttachError, ConfigError, UnsupportedModelError
from cmr.integration.decoder.families import (
    Family,
    require_decoder,
    require_settings,
    rope_types,
    row_of,
)
from cmr.integration.decoder.placement import device_of, shards
from cmr.integration.decoder.projections import KEY, QUERY, VALUE, project
from cmr.memory.allocation import LayerShape

FIRST_SHARE, LAST_SHARE = 0.13, 0.83
"""Default range of target layers as shares of the depth; see docs/how-it-works.md."""
INDEX_SHARE = 0.25
"""Default index layer as a share of the depth; see docs/how-it-works.md."""


class ModelAdapter:
    """What the memory needs to know of a model; nothing of the model is changed.

    `family` is its row; None: the one that its family has, or `UnsupportedModelError`.

    Attributes:
        processes: among which tensor parallelism divides the heads; 1: it does not.
        heads: query heads of this process.
        kv_heads: key-value heads of this process.
        detected: whether the row was given, and not found by the family's name.
        rotary_kinds: of each block, which rotary embedding it shares with others of its kind; None
            where it rotates nothing.
        rotary_varies: whether the embedding changes with the length of a text (LongRoPE).
        hooks: what takes away the hooks of partial passes that are under way, or were interrupted.
    """

    def __init__(self, model: Any, family: Family | None = None) -> None:
        self.model = model
        self.config: Any = require_decoder(model)
        self.family = row_of(self.config) if family is None else family
        require_settings(self.config, self.family)
        self.detected = family is not None
        self.decoder: nn.Module = self.model.get_decoder()
        self.layers: nn.ModuleList = getattr(self.decoder, self.family.layers)
        self.depth = len(self.layers)
        self.hidden: int = self.config.hidden_size
        heads: int = self.config.num_attention_heads
        self.head_dim: int = getattr(self.config, "head_dim", None) or self.hidden // heads
        # The attention goes first: Falcon's configuration says 71 heads where 1 is kept.
        says = (getattr(at, self.family.kv_heads, None) for at in (self.attention(0), self.config))
        self.processes = shards(self.attention(0), self.family.names)
        self.heads = self._share(heads)
        self.kv_heads = self._share(next(filter(None, says), heads))
        self.max_positions: int = getattr(self.config, self.family.max_positions)
        self.has_rotary = self.family.rotary is not None
        self.rotary_kinds = tuple(self._kind(layer) for layer in range(self.depth))
        self.rotary_varies = "longrope" in rope_types(self.config)
        self.hooks: list[Callable[[], None]] = []
        self._embeddings: nn.Module = self.model.get_input_embeddings()
        self._first = self._now()

    def _share(self, heads: int) -> int:
        """How many of all heads this process has."""
        if heads % self.processes:
            raise UnsupportedModelError(
                f"a number of heads that {self.processes} processes can share evenly expected, "
                f"got {heads}"
            )
        return heads // self.processes

    # -- parts -----------------------------------------------------------------------------------

    def attention(self, layer: int) -> Any:
        """The attention module of block `layer`."""
        return getattr(self.layers[layer], self.family.attention)

    def attentions(self) -> Iterator[Any]:
        """All attention modules, in order."""
        return (self.attention(i) for i in range(self.depth))

    def device(self, layer: int) -> torch.device:
        """Device of block `layer`."""
        return device_of(self.layers[layer])

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the model: that of its embeddings, also where weights are quantised."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def input_device(self) -> torch.device:
        """Device of the embeddings: where token ids go."""
        return device_of(self.model.get_input_embeddings())

    def require_unmoved(self) -> None:
        """Raises `AttachError` where the model has another dtype or device than at first."""
        # Every step comes by: two attributes are looked at, and no device is asked.
        if self._now() == self._first:
            return
        for what, first, now in zip(("dtype", "device"), self._first, self._now(), strict=True):
            if now != first:
                raise AttachError(
                    f"the model's {what} was {first} when its memory was attached and is {now} "
                    "now: detach() the memory and attach one to the model as it is"
                )

    def _now(self) -> tuple[torch.dtype, torch.device]:
        # Of the embeddings: they are not quantised, and `model.to` moves all or nothing.
        weight: Any = self._embeddings.weight
        return weight.dtype, weight.device

    # -- choices ---------------------------------------------------------------------------------

    def target_layers(self, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
        """The layers to store and to read at; numbers index `hidden_states`.

        Raises `ConfigError` for a number that the model does not have, or none that can be read.
        """
        if wanted is None:
            first = round(self.depth * FIRST_SHARE)
            last = max(first, min(self.depth - 1, round(self.depth * LAST_SHARE) - 1))
            return tuple(range(first, last + 1))
        for number in wanted:
            if not 0 <= number <= self.depth:
                raise ConfigError(
                    f"target_layers holds {number}, but this model has hidden states "
                    f"0..{self.depth}: state i enters block i, state {self.depth} leaves the last"
                )
        blocks = tuple(sorted({n for n in wanted if n < self.depth}))
        if not blocks:
            raise ConfigError(
                f"target_layers {wanted} names no block that can read memory; "
                f"blocks are 0..{self.depth - 1}"
            )
        return blocks

    def index_layer(self, wanted: int | None) -> int:
        """The layer whose states are searched; at a quarter of the depth when not given."""
        if wanted is None:
            return max(1, round(self.depth * INDEX_SHARE))
        if not 0 <= wanted < self.depth:
            raise ConfigError(
                f"index_layer must be 0..{self.depth - 1} on this model, got {wanted}"
            )
        return wanted

    def store_kind(self, wanted: str) -> str:
        """`kv` or `states`, whichever is smaller, where `auto` is wanted."""
        if wanted != "auto":
            return wanted
        # States are stored once, and projected again at every read.
        return "states" if self.hidden < 2 * self.kv_heads * self.head_dim else "kv"

    def layer_shape(self, layer: int, store: str) -> LayerShape:
        """What `store` keeps of a token at block `layer`."""
        at = (self.dtype, self.device(layer))
        if store == "states":
            return LayerShape(1, self.hidden, 0, *at)
        rotary = self.rotary_kinds[layer]
        return LayerShape(self.kv_heads, self.head_dim, self.head_dim, *at, rotary)

    # -- positions -------------------------------------------------------------------------------

    def _kind(self, layer: int) -> str | None:
        says = self.family.rotates
        if isinstance(says, str):
            rotates = bool(getattr(self.config, says)[layer])
        else:
            rotates = says is None or layer in says
        if not (rotates and self.has_rotary):
            return None
        return self._layer_type(layer) if self.family.rotary_by_layer_type else ""

    def _layer_type(self, layer: int) -> str:
        types = getattr(self.config, "layer_types", None)
        return types[layer] if types else "full_attention"

    def rotates(self, layer: int) -> bool:
        """Whether block `layer` rotates queries and keys; SmolLM3 has layers that do not."""
        return self.rotary_kinds[layer] is not None

    def rotary(
        self, layer: int, positions: torch.Tensor, reach: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the rotary embedding at `positions` `[batch, tokens]`, in float32.

        Two `[batch, tokens, rotary_dim]`, times the embedding's attention scaling. `reach` has all
        positions of the forward that it goes with: an embedding that changes with the length of a
        text (LongRoPE) takes the frequencies it has there. None: those of `positions` themselves.
        """
        if reach is not None and self.rotary_varies:
            # The module looks at the largest position it is given: one more column says how far.
            furthest = reach.max().to(positions.device).expand(len(positions), 1)
            cos, sin = self.rotary(layer, torch.cat([positions, furthest], dim=1))
            return cos[:, :-1], sin[:, :-1]
        module = getattr(self.decoder, self.family.rotary or "")
        # It rounds to the dtype of what it is given, and sums of angles need float32.
        like = torch.empty(0, dtype=torch.float32, device=positions.device)
        if self.family.rotary_by_layer_type:
            return module(like, positions, self._layer_type(layer))
        return module(like, positions)

    def shift(
        self, layer: int, amount: torch.Tensor, seen: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What moves keys that are rotated already on by `amount` `[batch]` positions.

        Cosine and sine `[batch, 1, rotary_dim]` float32 for `rotate`. `seen` is the length of the
        keys' text, which LongRoPE's frequencies depend on.
        """
        reach = torch.tensor(seen - 1) if seen and self.rotary_varies else None
        cos, sin = self.rotary(layer, amount[:, None], reach)
        # The keys have the embedding's attention scaling (YaRN) already.
        norm = (cos * cos + sin * sin).sqrt()
        return cos / norm, sin / norm

    # -- queries, keys and values ----------------------------------------------------------------

    def keys_values(self, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values of states `[batch, tokens, hidden]` that enter block `layer`.

        Two `[batch, kv_heads, tokens, head_dim]`.
        """
        heads = (self.heads, self.kv_heads)
        key, value = project(self.family, self.layers[layer], states, heads, (KEY, VALUE))
        return key, value

    def queries(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        """Un-rotated queries of states `[batch, tokens, hidden]` that enter block `layer`.

        Not yet scaled, `[batch, heads, tokens, head_dim]`. Query head h reads key-value head
        `h // (heads // kv_heads)`.
        """
        heads = (self.heads, self.kv_heads)
        (query,) = project(self.family, self.layers[layer], states, heads, (QUERY,))
        return query

    def distinct(self, x: torch.Tensor) -> torch.Tensor:
        """Keys or values of a cache, `[batch, kv_heads, tokens, dim]`, each head once."""
        # Some caches hold a key-value head once for every query head that reads it (Falcon 40B).
        return x if x.shape[1] == self.kv_heads else x[:, :: x.shape[1] // self.kv_heads]


def entering_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The states `[batch, tokens, hidden]` that enter a block: by position or by name."""
    states: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def with_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], states: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with other states, as a hook in front of a block returns them."""
    if args:
        return (states, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": states}
