"""Keys and values of chosen blocks, computed again from their token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import DynamicCache

from cmr.errors import NonFiniteStateError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.finite import all_finite
from cmr.integration.decoder.partial_pass import states_entering
from cmr.integration.window.local_window import LocalWindow
from cmr.integration.window.window_layer import adopt
from cmr.kernels.attention import unrotate
from cmr.memory.block_store import BlockStore

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]


class Recomputer:
    """Runs recalled passages through the model again, each as a text of its own.

    A beginning-of-text token goes in front, so that the passage has an attention sink, then
    `context` tokens of the text before it, in whole blocks. Both are dropped afterwards: a sink
    must never be read as memory. With `states` what enters the layers is wanted, not keys and
    values.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        layers: Sequence[int],
        context: int = 0,
        states: bool = False,
    ) -> None:
        self._adapter, self._layers, self._context = adapter, frozenset(layers), context
        self._states = states
        begin = getattr(adapter.config, "bos_token_id", None)
        self._begin = begin if isinstance(begin, int) else None

    def recompute(self, ring: BlockStore, passages: torch.Tensor) -> Layers:
        """Un-rotated keys and values of passages, `[n, run]` slots in the order of the text.

        A row has one passage, and -1 for none behind it. By layer number there are two `[n,
        kv_heads, run * block_size, head_dim]`; states stand for both, as one head. Raises
        `NonFiniteStateError` where the model makes something else than finite ones of them.
        """
        slots = torch.cat([self._ahead(ring, passages), passages], dim=1)
        where = slots.clamp(min=0)
        held = (ring.positions[where] >= 0) & (slots >= 0)[..., None]
        ids = ring.token_ids[where].flatten(1).to(self._adapter.input_device)
        mask = held.flatten(1).to(ids.device)
        if self._begin is not None:
            ids = torch.cat([ids.new_full((len(ids), 1), self._begin), ids], dim=1)
            mask = torch.cat([mask.new_ones((len(mask), 1)), mask], dim=1)
        front = ids.shape[1] - passages.shape[1] * ring.block_size
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        out: Layers = {}
        for number, (keys, values) in self._forward(ids, mask, positions).items():
            if self._states:
                out[number] = (keys[:, :, front:], values[:, :, front:])
                continue
            # Blocks are read at other places than they stand at here: their rotation is undone.
            if self._adapter.rotates(number):
                turn = self._adapter.rotary(number, positions.to(keys.device))
                cos, sin = (part.to(keys.dtype).float() for part in turn)
                keys = unrotate(keys, cos, sin)
            distinct = self._adapter.distinct
            out[number] = (distinct(keys[:, :, front:]), distinct(values[:, :, front:]))
        if not all_finite(x for pair in out.values() for x in pair):
            out = _finite(out, held[:, -passages.shape[1] :].flatten(1))
        return out

    def _ahead(self, ring: BlockStore, passages: torch.Tensor) -> torch.Tensor:
        """Slots `[n, context]` of the blocks in front of each passage, -1 where there is none."""
        blocks = -(-self._context // ring.block_size)
        ahead = passages.new_full((len(passages), blocks), -1)
        first = (passages >= 0).int().argmax(dim=1, keepdim=True)
        at = passages.gather(1, first)[:, 0]
        for column in reversed(range(blocks)):
            at = torch.where(at >= 0, ring.predecessor[at.clamp(min=0)], -1)
            ahead[:, column] = at
        return ahead

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> Layers:
        window = LocalWindow(
            self._adapter,
            window=ids.shape[1],  # nothing leaves
            sinks=0,
            block=1,
            padding=[0] * len(ids),
            wanted=frozenset() if self._states else self._layers,
        )
        cache = adopt(DynamicCache(config=self._adapter.config), window)
        noted = states_entering(
            self._adapter, self._layers if self._states else (), stop=max(self._layers) + 1
        )
        with torch.no_grad(), noted as states:
            self._adapter.decoder(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        if self._states:
            return {n: (x[:, None], x[:, None]) for n, x in states.items()}
        return {n: cache.layers[n].new for n in self._layers}


def _finite(layers: Layers, held: torch.Tensor) -> Layers:
    """The same with zeros where none of the tokens `[n, tokens]` is held, if all else is finite."""
    out: Layers = {}
    for number, pair in layers.items():
        empty = ~held.to(pair[0].device)[:, None, :, None]
        keys, values = (x.masked_fill(empty, 0) for x in pair)
        if not bool(keys.isfinite().all() and values.isfinite().all()):
            raise NonFiniteStateError(
                f"layer {number}: finite keys and values expected of a stored passage that was run "
                "through the model again, got NaN or infinite ones"
            )
        out[number] = keys, values
    return out
