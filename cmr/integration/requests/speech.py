"""What was said in a text: neither what a chat template puts around it nor its system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cmr.integration.requests.chat_template import Template, _common_end, _starts
from cmr.retrieval.vocabulary import FEWEST_WORDS, MOST_PARTS, Vocabulary

_MARKS = ("\u241f0\u241f", "\u241f1\u241f", "\u241f2\u241f")
_PIECE = MOST_PARTS * FEWEST_WORDS
_TALK = ("user", "assistant", "user")


class Speech:
    """Tells in token ids what was said, by the runs of tokens that open a turn of each role.

    Where a template has no turn for a system prompt and writes it into the user's first one, it
    cannot be told from what the user says.
    """

    def __init__(
        self,
        template: Template,
        openings: Sequence[list[int]],
        system: list[int],
        closing: list[int],
    ) -> None:
        self._template, self._closing = template, torch.tensor(closing)
        self._openings = [torch.tensor(run) for run in openings if run]
        self._system = torch.tensor(system) if system else None

    @classmethod
    def of(cls, tokenizer: Any, template: Template | None) -> Speech | None:
        """That of a tokenizer whose template could be read; None: it has none."""
        if template is None:
            return None

        def runs(roles: Sequence[str], begun: bool) -> list[list[int]]:
            """Ids of what a template puts around marks that it was made to say."""
            marks = _MARKS[: len(roles)]
            turns = [{"role": r, "content": mark} for r, mark in zip(roles, marks, strict=True)]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun)
            pieces = [text]
            for mark in marks:
                before, _, after = pieces.pop().partition(mark)
                pieces += [before, after]
            return [list(tokenizer(p, add_special_tokens=False)["input_ids"]) for p in pieces]

        talk, (*_, closing) = runs(_TALK, begun=True), runs(_TALK[:2], begun=False)
        try:
            first, then, _ = runs(("system", "user"), begun=True)
        except Exception:  # a template may refuse a system prompt, in any way
            first, then = [], []
        user, assistant = _common_end(talk[0], talk[2]), _common_end(talk[1], talk[3])
        # A system prompt in the user's own turn has no closing of its own behind it.
        system = first if _common_end(then, user) else []
        return cls(template, (user, assistant), system, closing)

    def said(self, ids: torch.Tensor, begins: bool) -> torch.Tensor:
        """Which of ids `[tokens]` on the CPU somebody said, as bool.

        `begins`: they stand at the beginning of a text. What comes in front of the first turn is
        the system prompt there, where there are turns at all.
        """
        said = self._template.content(ids[None])[0]
        system = [] if self._system is None else self._behind(ids, self._system).tolist()
        openings = [stop - len(self._system) for stop in system]  # type: ignore[arg-type]
        for start, stop in zip([*openings, len(ids)], [*system, len(ids)], strict=True):
            closing = max(0, start - len(self._closing))
            closed = ids[closing:start].equal(self._closing)
            said[closing if closed else start : stop] = False
        # 1 where a turn of somebody begins, -1 where one of the system does.
        turns = torch.zeros(len(ids) + 1, dtype=torch.int64)
        for run in self._openings:
            turns[self._behind(ids, run)] = 1
        if not bool(turns.any()):
            return said
        if begins:
            turns[0] = turns[0].where(turns[0] > 0, -1)
        turns[system] = -1
        last = _last(turns)
        silent = (last > 0) & (turns[(last - 1).clamp(min=0)] < 0)
        return said & ~silent

    def told(
        self, ids: torch.Tensor, said: torch.Tensor, vocabulary: Vocabulary | None
    ) -> torch.Tensor | None:
        """Which of what was `said` `[tokens]` bool users told: neither answers nor questions.

        A question is a sentence with a question mark of any script. None where no turn begins: it
        is not known to be a conversation.
        """
        whose = torch.zeros(len(ids) + 1, dtype=torch.int64)
        for number, run in enumerate(self._openings, start=1):
            whose[self._behind(ids, run)] = number
        if not bool(whose.any()):
            return None
        last = _last(whose)
        # In front of the first turn that begins here, nobody knows whose words they are.
        told = said & (last > 0) & (whose[(last - 1).clamp(min=0)] == 1)
        if vocabulary is None or not bool(told.any()):
            return told
        # Turn by turn: the last words of one are no part of the next one's question. In pieces that
        # have no more sentences than are told apart.
        at = told.nonzero()[:, 0]
        turns = torch.unique_consecutive(last[at], return_counts=True)[1].tolist()
        pieces = [piece for turn in at.split(turns) for piece in turn.split(_PIECE)]
        device = vocabulary.tables.classes.device
        rows = pad_sequence([ids[piece] for piece in pieces], batch_first=True)
        there = pad_sequence([torch.ones_like(p).bool() for p in pieces], batch_first=True)
        of, asks = vocabulary.parts(rows.to(device), there.to(device))
        told[at] = ~asks.gather(1, of.clamp(min=0)).cpu()[there]
        return told

    @staticmethod
    def _behind(ids: torch.Tensor, run: torch.Tensor) -> torch.Tensor:
        """Places right behind each occurrence of a run."""
        starts = _starts(ids[None], run)
        found = torch.zeros(0, dtype=torch.int64) if starts is None else starts[0].nonzero()[:, 0]
        return found + len(run)


def _last(turns: torch.Tensor) -> torch.Tensor:
    """For each token `[tokens]` 1 + the place of the last turn that began in front of it, else 0.

    `turns` `[1 + tokens]` int64 is not 0 at the places where turns begin.
    """
    places = torch.arange(len(turns))
    return (places + 1).where(turns != 0, 0).cummax(0).values[:-1]
