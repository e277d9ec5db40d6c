"""Which text of its session a row of a window is, and what of it is to be stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cmr.integration.capture.turns import OTHER, TOLD, UNSAID
from cmr.memory.seen import MAX_TOKENS, Run, SeenText, grown, stretches
from cmr.memory.sessions import SessionTable


@dataclass(frozen=True, eq=False)
class RowText:
    """The text of one row, as far as a `generate` was given it; places count in that text.

    Attributes:
        skipped: `[prompt]` bool on the CPU, tokens of the prompt that are not to be stored: they
            are already, or nobody said them.
        ends: ids that end an answer. What was generated from the first one on is filler.
        key: by which the session knows it again; None: it does not.
        base: key of the text that it goes on with and how many tokens of that one; None: none.
        told: `[prompt]` bool on the CPU, what of the prompt its user told, rather than asked; the
            rest was said, too, or is not to be stored. None: nobody knows whose words they are.
        sure: whether the answer is the one that was given: of several answers to one input nobody
            knows which was.
    """

    skipped: torch.Tensor
    ends: torch.Tensor
    key: int | None = None
    base: tuple[int, int] | None = None
    sure: bool = True
    told: torch.Tensor | None = None

    def known(self, sinks: int) -> int:
        """Tokens at the beginning of which none is to be stored.

        Where text is known right behind its first `sinks` tokens, these were left out before.
        """
        first = sinks if bool(self.skipped[sinks : sinks + 1].any()) else 0
        wanted = (~self.skipped[first:]).nonzero()
        return first + int(wanted[0]) if len(wanted) else len(self.skipped)

    def kept(self, ids: torch.Tensor, first: int, finished: bool) -> torch.Tensor:
        """Which of ids `[tokens]` on the CPU, from a place on, are to be stored, as bool.

        `finished`: these are the last ones, and stood in the window when the answer was there.
        """
        places = torch.arange(first, first + len(ids))
        prompt = len(self.skipped)
        generated = places >= prompt
        over = (generated & torch.isin(ids, self.ends)).cumsum(0) > 0
        if finished and not self.sure:
            over |= generated
        within = (places >= 0) & ~generated
        if not prompt:
            return ~over
        return ~over & ~(within & self.skipped[places.clamp(0, prompt - 1)])

    def kinds(self, first: int, tokens: int) -> torch.Tensor:
        """Kinds `[1 + tokens]` int8, see `turns`, from the place in front of `first` on.

        What was stored before is not told from what nobody said.
        """
        assert self.told is not None
        places, prompt = torch.arange(first - 1, first + tokens), len(self.skipped)
        kinds = torch.full_like(places, OTHER, dtype=torch.int8)
        kinds[places < 0] = UNSAID
        inside = (places >= 0) & (places < prompt)
        at = places[inside]
        told = torch.where(self.told[at], TOLD, OTHER)
        kinds[inside] = told.masked_fill(self.skipped[at], UNSAID).to(torch.int8)
        return kinds

    def going_on(
        self,
        skipped: torch.Tensor,
        before: torch.Tensor,
        sure: bool,
        told: torch.Tensor | None = None,
    ) -> RowText:
        """The same text where another prompt goes on with it.

        `skipped` `[tokens]` bool: what of the whole prompt nobody said; `before`: ids of what was
        there already; `told`: of the whole prompt.
        """
        skipped = skipped.clone()
        skipped[: len(before)] |= ~self.kept(before, 0, finished=False)[: len(skipped)]
        return replace(self, skipped=skipped, sure=sure, told=told)

    def cropped(self, tokens: int) -> RowText:
        """The same where nothing is left behind its first tokens."""
        told = None if self.told is None else self.told[:tokens]
        return replace(self, skipped=self.skipped[:tokens], told=told)

    def note(
        self,
        table: SessionTable,
        session: int,
        ids: torch.Tensor,
        stored: torch.Tensor,
        place: int,
        position: int,
    ) -> None:
        """Note in its session what of it was stored: `stored` `[tokens]` bool of `ids` on the CPU.

        `place` and `position` are those of the first of them, in the text and in the session's.
        """
        if self.key is None or not bool(stored.any()):
            return
        texts, instead = table.texts(session), None
        text = texts.get(self.key)
        if text is None:
            text = SeenText()
            if self.base is not None and self.base[0] in texts:
                before, tokens = texts[self.base[0]], self.base[1]
                text = before.first(tokens)
                instead = self.base[0] if len(before) <= tokens else None
        cuts = [len(self.skipped), *([] if self.base is None else self.base[1:])]
        for start, stop in stretches(stored):
            if place + stop <= MAX_TOKENS:
                run = Run(place + start, position + start, ids[start:stop].int().clone())
                text = text.with_run(run, cuts)
        table.note_texts(session, grown(texts, self.key, text, instead))
