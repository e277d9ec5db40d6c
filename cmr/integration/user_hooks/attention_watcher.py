"""Attention patterns: the weights of layers, beside what the model computes itself."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cmr.errors import UnsupportedModelError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.reweave import face
from cmr.integration.reweave.attention import WATCH
from cmr.integration.reweave.attention_weights import attention_weights

Weights = Callable[[int, torch.Tensor], None]
"""Takes a layer's number and its weights `[batch, heads, tokens, seen]` float32."""

_weights = torch.no_grad()(attention_weights)


class Watcher:
    """Lets chosen attention modules tell their weights; what they compute stays as it is.

    Raises:
        UnsupportedModelError: the family's attention does not go through transformers' interface.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        if adapter.family.plug != "interface":
            raise UnsupportedModelError(
                f"attention patterns of {adapter.config.model_type!r} cannot be captured: its "
                "attention does not go through transformers' AttentionInterface"
            )
        self._adapter = adapter

    def watch(self, layers: set[int], tell: Weights) -> None:
        """Exactly these layers tell their weights from now on; none of them: as it was before."""
        for number, module in enumerate(self._adapter.attentions()):
            if number in layers:
                setattr(module, WATCH, lambda *args, n=number: tell(n, _weights(*args)))
                face.put(module)
            elif hasattr(module, WATCH):
                delattr(module, WATCH)
                face.take_away(module)
