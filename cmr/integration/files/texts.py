"""Texts that a session was sent, as a header has them: where they stand, and not a token of them.

The ids are those of the blocks beside: what is forgotten there is known again by nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from cmr.memory.seen import Run, SeenText, Texts, stretches
from cmr.memory.store import Saved


def to_header(texts: Texts) -> list[dict[str, list[int]]]:
    """What a header says of texts."""
    return [
        {
            "at": [run.at for run in text.runs],
            "positions": [run.position for run in text.runs],
            "tokens": [len(run.ids) for run in text.runs],
            "cuts": list(text.cuts),
        }
        for text in texts.values()
    ]


def from_header(saved: Saved, session: Mapping[str, Any]) -> Iterable[SeenText]:
    """The texts of a session in a header, as far as a saved memory has their tokens."""
    if not session["texts"]:
        return
    mine = saved.session == session["number"]
    held = saved.columns["positions"][mine]
    ids = saved.columns["token_ids"][mine][held >= 0]
    # Each position once, whatever a file says.
    places, order = held[held >= 0].sort(stable=True)
    new = places.diff(prepend=places.new_full((1,), -1)) > 0
    places, ids = places[new], ids[order][new].int()
    for text in session["texts"]:
        runs = []
        for at, position, tokens in zip(*(text[n] for n in _RUN), strict=True):
            ends = torch.tensor([position, position + tokens])
            first, last = torch.searchsorted(places, ends).tolist()
            there = torch.zeros(tokens, dtype=torch.bool)
            there[places[first:last] - position] = True
            for start, stop in stretches(there):
                run = ids[first : first + stop - start].clone()
                runs.append(Run(at + start, position + start, run))
                first += stop - start
        if runs:
            cuts = sorted(cut for cut in set(text["cuts"]) if cut <= runs[-1].stop)
            yield SeenText(runs, cuts)


_RUN = ("at", "positions", "tokens")
