"""The angles by which sinks are turned forward, for many steps of a window at once."""

from __future__ import annotations

import torch

from cmr.integration.decoder.adapter import ModelAdapter

AHEAD = 64
"""Amounts whose angles are computed together: a window moves on by a block each time."""

Angles = tuple[torch.Tensor, torch.Tensor]


class SinkTurns:
    """Cosine and sine for sinks of one cache, kept for the next `AHEAD` amounts by `block`."""

    def __init__(self, adapter: ModelAdapter, block: int) -> None:
        self._adapter, self._block = adapter, block
        self._kept: dict[tuple[str, torch.device, bool], tuple[int, Angles]] = {}

    def by(self, layer: int, amount: int, seen: int, device: torch.device) -> Angles:
        """As `ModelAdapter.shift` of that one amount, `[1, 1, rotary_dim]` float32 each."""
        adapter, kind = self._adapter, self._adapter.rotary_kinds[layer]
        step, beside = divmod(amount, self._block)
        # Where angles change with the length of a text, those to come are not known.
        if beside or kind is None or adapter.rotary_varies:
            return adapter.shift(layer, torch.full((1,), amount, device=device), seen)
        page, at = divmod(step, AHEAD)
        # A tensor that was made in inference mode may not take part in a gradient later.
        key = kind, device, torch.is_inference_mode_enabled()
        if key not in self._kept or self._kept[key][0] != page:
            amounts = torch.arange(page * AHEAD, (page + 1) * AHEAD, device=device) * self._block
            self._kept[key] = page, adapter.shift(layer, amounts)
        cos, sin = self._kept[key][1]
        return cos[at : at + 1], sin[at : at + 1]
