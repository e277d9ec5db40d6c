"""The texts that a session was sent, as far as they were stored: what comes again is known.

A client sends its whole conversation with every turn. Each token of it is stored once: a text is
compared with those seen before, from its beginning on, and what they have in common is known.
Nothing but ids of tokens that were stored is kept, beside the memory and bounded; what was not
stored (a template, a system prompt, what must not be kept) and what was forgotten is a gap, which
says how long it was and not what. A gap agrees with anything, and what stands there is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

MAX_TEXTS = 32
"""Texts of a session that are known again; the one that grew longest ago is given up first."""
MAX_TOKENS = 1 << 17
"""Length of a session's texts together. What lies behind that in one text is not known again."""
GAP = -1


class Run(NamedTuple):
    """Tokens in a row: `at`, place of the first one in its text; `position`, in the session's.

    `ids`: `[tokens]` int32 on the CPU.
    """

    at: int
    position: int
    ids: torch.Tensor

    @property
    def stop(self) -> int:
        """Place in the text behind the last one."""
        return self.at + len(self.ids)


class Known(NamedTuple):
    """What a text has in common with one seen before.

    `key`: of that text; None: there is none. `tokens`: that many from the beginning on are the
    same, or nobody knows. `mask`: `[tokens]` bool, which of them are known and need not be stored.
    """

    key: int | None
    tokens: int
    mask: torch.Tensor


class SeenText:
    """One text from its beginning on: runs in its order, and places where a part of it ended.

    It is never changed; the methods give another one.
    """

    def __init__(
        self, runs: Sequence[Run] = (), cuts: Sequence[int] = (), ids: torch.Tensor | None = None
    ) -> None:
        self.runs, self.cuts = tuple(runs), tuple(cuts)
        self._ids = ids

    def __len__(self) -> int:
        return self.runs[-1].stop if self.runs else 0

    @property
    def ids(self) -> torch.Tensor:
        """`[len(self)]` int32, with gaps."""
        # Only where it is asked for: of what was loaded, most is never sent again.
        if self._ids is None:
            ids = torch.full((len(self),), GAP, dtype=torch.int32)
            for run in self.runs:
                ids[run.at : run.stop] = run.ids
            self._ids = ids
        return self._ids

    def common(self, ids: torch.Tensor, block: int) -> int:
        """Tokens from the beginning on that a text of `ids` `[tokens]` int32 has in common with it.

        Where both go on differently, it counts to a place where a part ended or a run begins, or
        whole blocks behind one, but for the last of them: half a sentence is not taken for the
        whole one, and what is stored anew can be read by itself.
        """
        most = min(len(self), len(ids))
        mine = self.ids[:most]
        differ = ((mine != ids[:most]) & (mine != GAP)).nonzero()
        if not len(differ):
            return most
        agreed = int(differ[0])
        ends = [*self.cuts, *(run.at for run in self.runs)]
        part = max((end for end in ends if end <= agreed), default=0)
        return part + max(0, (agreed - part) // block - 1) * block

    def first(self, tokens: int) -> SeenText:
        """Its first tokens."""
        if tokens >= len(self):
            return self
        runs = [Run(r.at, r.position, r.ids[: tokens - r.at]) for r in self.runs if r.at < tokens]
        return SeenText(runs, [cut for cut in self.cuts if cut <= tokens])

    def with_run(self, run: Run, cuts: Sequence[int] = ()) -> SeenText:
        """With a run behind it or in a gap, and with further places where a part ended.

        Where it says something else at that place, what it says from there on is given up.
        """
        cuts = sorted({*self.cuts, *cuts})
        if run.at < len(self):
            if bool((self.ids[run.at : run.stop] == GAP).all()):
                return SeenText(sorted([*self.runs, run], key=lambda r: r.at), cuts)
            return self.first(run.at).with_run(run, cuts)
        gap = torch.full((run.at - len(self),), GAP, dtype=torch.int32)
        ids = None if self._ids is None else torch.cat([self._ids, gap, run.ids])
        runs, last = self.runs, self.runs[-1] if self.runs else None
        if last is not None and (last.stop, last.position + len(last.ids)) == run[:2]:
            run = Run(last.at, last.position, torch.cat([last.ids, run.ids]))
            runs = runs[:-1]
        return SeenText((*runs, run), cuts, ids)

    def moved(self, by: int) -> SeenText:
        """With all positions moved, as where its session was put behind another one."""
        runs = [run._replace(position=run.position + by) for run in self.runs]
        return SeenText(runs, self.cuts, self._ids)

    def only(self, positions: torch.Tensor) -> SeenText:
        """What of it stands at some positions, `[n]` int64, of the session's text."""
        runs = []
        for run in self.runs:
            there = torch.isin(torch.arange(len(run.ids)) + run.position, positions)
            runs += [
                # Copies: a view would keep what is forgotten alive.
                Run(run.at + start, run.position + start, run.ids[start:stop].clone())
                for start, stop in stretches(there)
            ]
        return SeenText(runs, [cut for cut in self.cuts if runs and cut <= runs[-1].stop])


Texts = Mapping[int, SeenText]
"""A session's texts by their keys, the one that grew last at the end. Never changed in place."""


def recognised(texts: Texts, ids: torch.Tensor, block: int) -> Known:
    """What of a text of `ids` `[tokens]` int32 on the CPU was seen before.

    The time depends on the texts that are kept, which are bounded, and not on what is stored.
    """
    best, most = Known(None, 0, torch.zeros(0, dtype=torch.bool)), 0
    for key, text in reversed(list(texts.items())):
        tokens = text.common(ids, block)
        mask = text.ids[:tokens] != GAP
        count = int(mask.sum())
        if count > most:
            best, most = Known(key, tokens, mask), count
    return best


def grown(texts: Texts, key: int, text: SeenText, instead: int | None = None) -> Texts:
    """The texts with one that grew; `instead` of one that it goes on with, where that is given.

    So many of the others are given up as there is no room for.
    """
    others = {k: t for k, t in texts.items() if k not in (key, instead)}
    length = len(text) + sum(map(len, others.values()))
    while others and (length > MAX_TOKENS or len(others) >= MAX_TEXTS):
        length -= len(others.pop(next(iter(others))))
    return {**others, key: text}


def stretches(mask: torch.Tensor) -> list[tuple[int, int]]:
    """The half-open ranges in which a mask `[n]` bool is True."""
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff().nonzero()[:, 0]
    return [(start, stop) for start, stop in edges.view(-1, 2).tolist()]
