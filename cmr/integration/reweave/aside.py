"""What layers look at less while they read memory: the parts of a message that asked for nothing.

A question inside everyday talk finds its passage, and a small model then answers the talk. So the
layers that read memory also turn to what was asked: the sentences that found something, and those
with a question mark, keep their weight, and the others of the same message lose some. What is
not much longer than what asked stays untouched: an instruction that goes with a question is to be
followed. So does what is far too long for talk: a letter given with a question is to be read.

Source: Zhang et al. (2024), Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cmr.integration.decoder.adapter import ModelAdapter
from cmr.retrieval import Choice
from cmr.retrieval.ask import QueryParts

TALK = 160
"""Tokens beside what asked that may still be talk; from twice as many on they keep all weight."""


def focus_for(adapter: ModelAdapter, setting: float | str) -> float:
    """How much this model turns to what was asked; see `ReweaveConfig.focus`.

    A very small model answers talk, and follows no request that stands in it; others are followed.
    """
    if isinstance(setting, float):
        return setting
    return 0.7 if adapter.model.num_parameters() < 300e6 else 0.35


def aside_of(
    parts: QueryParts, choice: Choice, sure: torch.Tensor, focus: float
) -> torch.Tensor | None:
    """What is added to the logits of a message's tokens, `[batch, tokens]` float32, at most 0.

    Of a tokens that asked and r others the others weigh min(1, a / (focus r))^2, where `sure` is 1
    and r at most `TALK`; up to twice that they lose less and less.

    Args:
        parts: of what was asked.
        choice: what it found.
        sure: `[batch]` in [0, 1], how surely; at 0 nothing is added.
        focus: 0 or more; at 0 nothing is added.

    Returns:
        None where there is a single part, or nothing says which one found what.
    """
    count = parts.marked.shape[1]
    if not focus or choice.parts is None or count < 2:
        return None
    numbers = torch.arange(count, device=parts.of.device)
    found = (choice.parts[..., None] == numbers).any(1)
    # Where nothing was found nothing is known of what was meant.
    kept = found | parts.marked | ~found.any(1, keepdim=True)
    asks = kept.gather(1, parts.of.clamp(min=0))
    there = parts.of >= 0
    asked, rest = (asks & there).sum(1), (~asks & there).sum(1)
    less = 2.0 * sure * (asked / (focus * rest).clamp(min=1e-6)).clamp(1e-6, 1.0).log()
    less = less * (2.0 - rest / TALK).clamp(0.0, 1.0)
    return less[:, None] * (~asks & there)


class Aside:
    """The same as a mask over a layer's local keys, made once for all layers of a forward.

    Args:
        less: `[batch, tokens]` float32, see `aside_of`.
        start: tokens that the cache had seen in front of those.
        seen: tokens that it has seen with the forward's own.
    """

    def __init__(self, less: torch.Tensor, start: int, seen: int) -> None:
        self._columns = F.pad(less, (start, seen - start - less.shape[1]))[:, None, None]
        self._made: list[tuple[torch.Tensor | None, torch.device, torch.Tensor]] = []

    def over(
        self, mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor | None:
        """The layer's own mask with this in it.

        Of a window that has let go of tokens, or never held them all, the mask as it was.
        """
        tokens, seen = query.shape[2], key.shape[2]
        if self._columns.shape[-1] != seen:
            return mask
        for given, device, made in self._made:
            if given is mask and device == query.device:
                return made
        made = self._columns.to(query.device)
        if mask is not None and mask.dtype != torch.bool:
            made = mask + made
        elif mask is not None or tokens > 1:
            sees = mask
            if sees is None:
                sees = torch.ones(tokens, seen, dtype=torch.bool, device=query.device)
                sees = sees.tril(seen - tokens)
            made = made.masked_fill(~sees, float("-inf"))
        made = made.to(query.dtype)
        self._made.append((mask, query.device, made))
        return made
