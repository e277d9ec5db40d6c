"""Keys and values of chosen blocks, computed again from their token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicCache

from cmr.integration.adapter import ModelAdapter
from cmr.integration.cache import LocalWindow
from cmr.integration.partial import stop_before
from cmr.kernels.reference.rotary import unrotate
from cmr.memory.ring import RingBuffer

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]


class Recomputer:
    """Runs recalled passages through the model again, each as a text of its own.

    A beginning-of-text token goes in front, so that the passage has an attention sink, and is
    dropped afterwards: a sink must never be read as memory.

    Args:
        adapter: the model.
        layers: layers whose keys and values are wanted.
    """

    def __init__(self, adapter: ModelAdapter, layers: Sequence[int]) -> None:
        self._adapter, self._layers = adapter, frozenset(layers)
        begin = getattr(adapter.config, "bos_token_id", None)
        self._begin = begin if isinstance(begin, int) else None

    def recompute(self, ring: RingBuffer, table: torch.Tensor) -> Layers:
        """Un-rotated keys and values of a block table.

        Args:
            ring: the store.
            table: `[batch, passages, run]` slots, -1 for none.

        Returns:
            Layer number to two `[batch, kv_heads, passages * run * block_size, head_dim]`.
        """
        rows, passages, run = table.shape
        slots = table.clamp(min=0).reshape(rows * passages, run)
        held = (ring.positions[slots] >= 0) & (table.reshape(rows * passages, run) >= 0)[..., None]
        ids = ring.token_ids[slots].flatten(1).to(self._adapter.input_device)
        mask = held.flatten(1).to(ids.device)
        front = 0 if self._begin is None else 1
        if front:
            ids = torch.cat([ids.new_full((len(ids), 1), self._begin or 0), ids], dim=1)
            mask = torch.cat([mask.new_ones((len(mask), 1)), mask], dim=1)
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        found = self._forward(ids, mask, positions)
        out: Layers = {}
        for number, (keys, values) in found.items():
            if self._adapter.has_rotary:
                turn = self._adapter.rotary(number, positions.to(keys.device))
                cos, sin = (part.to(keys.dtype).float() for part in turn)
                keys = unrotate(keys, cos, sin)
            out[number] = (
                _joined(keys[:, :, front:], rows, passages),
                _joined(values[:, :, front:], rows, passages),
            )
        return out

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> Layers:
        found: Layers = {}

        def take(layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            if layer in self._layers:
                found[layer] = (keys, values)

        window = LocalWindow(
            window=ids.shape[1],
            sinks=0,
            block=1,
            turn=self._adapter.turn_forward,
            padding=[0] * len(ids),
            device=ids.device,
            on_new=take,
        )
        cache = window.adopt(DynamicCache(config=self._adapter.config), self._adapter.depth)
        with torch.no_grad(), stop_before(self._adapter, max(self._layers) + 1):
            self._adapter.decoder(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return found


def _joined(x: torch.Tensor, rows: int, passages: int) -> torch.Tensor:
    """`[rows * passages, heads, tokens, dim]` to `[rows, heads, passages * tokens, dim]`."""
    _, heads, tokens, dim = x.shape
    x = x.view(rows, passages, heads, tokens, dim).transpose(1, 2)
    return x.reshape(rows, heads, passages * tokens, dim)
