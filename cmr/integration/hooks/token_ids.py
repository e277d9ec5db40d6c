"""Token ids of a model that embeds by itself, such as one of text and images."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn


class TokenIds(threading.local):
    """Notes them in front of the model, in each thread, for the decoder that begins inside it."""

    _noted: torch.Tensor | None = None

    def note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook in front of the model."""
        self._noted = kwargs.get("input_ids", args[0] if args else None)

    def drop(self, *_: Any) -> None:
        """A hook behind it: of a decoder that is called by itself nothing is known."""
        self._noted = None

    def take(self, ids: torch.Tensor | None, embeds: torch.Tensor | None) -> torch.Tensor | None:
        """Those that the decoder was given, else those noted, if they belong to its embeddings."""
        noted, self._noted = self._noted, None
        if ids is not None or noted is None or embeds is None:
            return ids
        return noted if noted.shape == embeds.shape[:2] else None
