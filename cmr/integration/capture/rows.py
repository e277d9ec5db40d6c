"""Token ids and masks as callers give them, checked before any work is done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Rows:
    """The texts of a batch, without padding, packed to the left.

    Attributes:
        token_ids: `[batch, longest]`.
        lengths: tokens of each row.
        keep: `[batch, longest]` bool, False for tokens that must never be stored; None: all may.
    """

    token_ids: torch.Tensor
    lengths: tuple[int, ...]
    keep: torch.Tensor | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.token_ids.shape[1]

    @classmethod
    def pack(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        vocabulary: int,
        keep: torch.Tensor | None = None,
    ) -> Rows:
        """Checks a batch, see `checked`, and packs it.

        `keep` is bool, of the shape of `input_ids`, False for tokens that are read and must never
        be stored; `TypeError` or `ValueError` where it is something else.
        """
        ids, mask = checked(input_ids, attention_mask, vocabulary, packed=True)
        if keep is not None:
            keep = _like(ids, "keep", keep)
            # 0 and 1 could be meant either way round; what must not be stored must not be guessed.
            if keep.dtype != torch.bool:
                raise TypeError(
                    f"keep must be a bool tensor, True = may be stored, got {keep.dtype}"
                )
        real = torch.ones_like(ids).bool() if mask is None else mask.bool()

        def packed(x: torch.Tensor) -> torch.Tensor:
            kept = [row[there] for row, there in zip(x, real, strict=True)]
            return pad_sequence(kept, batch_first=True)

        lengths = tuple(real.sum(1).tolist())
        return cls(packed(ids), lengths, None if keep is None else packed(keep))


def checked(
    input_ids: Any, attention_mask: Any, vocabulary: int, packed: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids `[batch, tokens]` int64 and their mask, 0 for padding; None: no padding.

    `packed` says that padding is taken out before the model sees it: its ids may be anything then,
    and a single text may be `[tokens]`. Raises `TypeError` where the ids are no integer tensor or
    the mask is no tensor, `ValueError` for an empty text, an id outside the vocabulary, or another
    shape.
    """
    kind = getattr(input_ids, "dtype", type(input_ids).__name__)
    if kind not in INTEGERS:
        raise TypeError(f"input_ids must be an integer tensor of token ids, got {kind}")
    ids = input_ids[None] if packed and input_ids.ndim == 1 else input_ids
    if ids.ndim != 2:
        shapes = "[tokens] or [batch, tokens]" if packed else "[batch, tokens]"
        raise ValueError(f"input_ids must be {shapes}, got {tuple(input_ids.shape)}")
    ids = ids.long()
    mask = None if attention_mask is None else _like(ids, "attention_mask", attention_mask)
    said = [ids.shape[1] > 0] * len(ids) if mask is None else mask.any(-1).tolist()
    if not said or not all(said):
        empty = said.index(False) if said else 0
        raise ValueError(
            f"row {empty} of the text is empty: a token at least in every row expected"
        )
    require_known(ids if mask is None or not packed else ids[mask.bool()], vocabulary)
    return ids, mask


def require_known(ids: torch.Tensor, vocabulary: int) -> None:
    """Raises `ValueError` unless all token ids are ones of the model; there must be some."""
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        got = f"{low}..{high}" if low < high else str(low)
        raise ValueError(
            f"token ids must be 0..{vocabulary - 1} for this model, got {got}: "
            "was the text tokenised with another model's tokenizer?"
        )


def _like(ids: torch.Tensor, name: str, given: Any) -> torch.Tensor:
    """A mask of the shape of `ids`, on its device."""
    if not isinstance(given, torch.Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(given).__name__}")
    given = given[None] if given.ndim == 1 else given
    if given.shape != ids.shape:
        raise ValueError(
            f"{name} must have the shape of input_ids {tuple(ids.shape)}, got {tuple(given.shape)}"
        )
    return given.to(ids.device)
