"""Where a question stands in a prompt: what a chat template puts around it asks for nothing."""

from __future__ import annotations

from typing import Any

import torch

_MARKS = ("\u241f0\u241f", "\u241f1\u241f", "\u241f2\u241f")


class Template:
    """The runs of tokens that a chat template puts around what is said, the longer ones first.

    `opening` is the one in front of what a user says.
    """

    def __init__(self, runs: list[list[int]], opening: list[int]) -> None:
        self._runs, self._opening = [torch.tensor(run) for run in runs], torch.tensor(opening)

    @classmethod
    def of(cls, tokenizer: Any) -> Template | None:
        """The template of a tokenizer; None where it has none, or one that cannot be read."""
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            return None
        turns = [
            {"role": role, "content": mark}
            for role, mark in zip(("user", "assistant", "user"), _MARKS, strict=True)
        ]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template may refuse anything, in any way
            return None
        # The template is known by what stands around three marks that it was made to say.
        pieces = [text]
        for mark in _MARKS:
            before, found, after = pieces.pop().partition(mark)
            if not found:
                return None
            pieces += [before, after]
        runs = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        opening = _common_end(runs[0], runs[2])
        if not opening:
            return None
        wanted = {tuple(run) for run in (*runs, opening) if len(run) > 1}
        return cls([list(run) for run in sorted(wanted, key=len, reverse=True)], opening)

    def content(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Which of token ids `[batch, tokens]` belong to no run. Nothing waits for a device."""
        inside = torch.zeros_like(token_ids, dtype=torch.bool)
        for run in self._runs:
            starts = _starts(token_ids, run)
            if starts is None:
                continue
            # +1 where a run begins and -1 behind it: their sum is above 0 inside of one.
            edges = torch.zeros(len(token_ids), token_ids.shape[1] + 1, device=token_ids.device)
            edges[:, : starts.shape[1]] += starts.float()
            edges[:, len(run) :] -= starts.float()
            inside |= edges.cumsum(-1)[:, :-1] > 0
        return ~inside

    def question(self, token_ids: torch.Tensor) -> torch.Tensor | None:
        """Which of token ids `[batch, tokens]` are what a user said last, as bool.

        None where a row has no such tokens: all of them may ask then.
        """
        starts = _starts(token_ids, self._opening)
        if starts is None:
            return None
        # The place behind the last opening of each row; 0 where there is none.
        width = len(self._opening)
        places = torch.arange(token_ids.shape[1], device=token_ids.device)
        begins = (starts * (places[: starts.shape[1]] + width)).amax(-1, keepdim=True)
        found = self.content(token_ids) & (places >= begins) & (begins > 0)
        return found if bool(found.any(-1).all()) else None


def _starts(token_ids: torch.Tensor, run: torch.Tensor) -> torch.Tensor | None:
    """Where a run begins, `[batch, tokens - len(run) + 1]` bool; None: the text is too short."""
    if token_ids.shape[1] < len(run):
        return None
    return (token_ids.unfold(1, len(run), 1) == run.to(token_ids.device)).all(-1)


def _common_end(one: list[int], other: list[int]) -> list[int]:
    """The longest run that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
