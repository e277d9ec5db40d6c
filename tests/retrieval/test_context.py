"""Windows of short lines: turns of a conversation are found by what is said around them."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from cmr.kernels.reference.attention import NEG_INF
from cmr.kernels.search.parts import fits_around
from cmr.retrieval import context
from cmr.retrieval.context import windows_of

BLOCK = 4
WORD, BREAK = 1, 2


class Breaks:
    """A vocabulary that knows one token which ends a line."""

    def breaks(self, token_ids: torch.Tensor) -> torch.Tensor:
        return token_ids == BREAK


def stored(lines: list[int], links: list[list[int]] | None = None) -> SimpleNamespace:
    """A store of blocks; `lines` begin in each; `links` are texts of slots, by default one."""
    ids = torch.full((len(lines), BLOCK), WORD)
    for row, count in zip(ids, lines, strict=True):
        row[: 2 * count : 2] = BREAK
    successor = torch.full((len(lines),), -1)
    predecessor = successor.clone()
    for text in links or [list(range(len(lines)))]:
        for one, other in pairwise(text):
            successor[one], predecessor[other] = other, one
    places = torch.arange(len(lines) * BLOCK).view(-1, BLOCK)
    return SimpleNamespace(
        high_water=len(lines), successor=successor, predecessor=predecessor, token_ids=ids,
        positions=places,
    )  # fmt: skip


def fits(store: SimpleNamespace, values: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """Of one query token that asks in one part, without words: `[blocks]`."""
    around = windows_of(store, Breaks())  # type: ignore[arg-type]
    seen = torch.ones(1, len(values), dtype=torch.bool)
    words = torch.zeros(1, 1, len(values))
    one = torch.ones(1, 1, 1)
    given = near[None, None], values[None, None], one, words, seen
    return fits_around(around, *given, 8.0, context.WORD_WEIGHT)[0, 0]


def test_windows_are_six_blocks_of_one_text() -> None:
    around = windows_of(stored([1] * 12), Breaks())  # type: ignore[arg-type]
    assert around.inside[5].tolist() == [5, 7, 9] and around.inside[10].tolist() == [10, 12, 12]
    assert around.holders[5].tolist() == [5, 4, 3, 2, 1]
    # Six lines from each block on, and fewer where the text ends.
    assert around.lined.tolist() == [True] * 9 + [False] * 3
    # The last block lies in the window that begins with the last but three.
    assert around.within.all()


@pytest.mark.parametrize(("count", "many"), [(context.LINES, True), (context.LINES - 1, False)])
def test_a_window_of_few_lines_is_prose(count: int, many: bool) -> None:
    lines = [1] * count + [0] * (12 - count)
    around = windows_of(stored(lines), Breaks())  # type: ignore[arg-type]
    assert bool(around.lined.any()) == many
    near = torch.randn(12)
    have = fits(stored(lines), torch.randn(12), near)
    assert torch.equal(have, near) == (not many)


def test_several_line_ends_in_a_row_begin_one_line() -> None:
    store = stored([0] * 12)
    store.token_ids[:] = BREAK
    assert not windows_of(store, Breaks()).within.any()  # type: ignore[arg-type]


def test_no_empty_place_is_a_line() -> None:
    store = stored([2] * 12)
    store.positions[:] = -1
    assert not windows_of(store, Breaks()).within.any()  # type: ignore[arg-type]


def test_a_passage_has_the_fit_of_the_best_window_around_it() -> None:
    values = torch.zeros(30)
    values[14] = 5.0
    have = fits(stored([1] * 30), values, torch.zeros(30))
    best = have == have.max()
    # Windows that begin at 10 to 14 hold it (`values` are of passages: 14 reaches one block on),
    # by steps of two; and passages lie in windows that begin up to four blocks before them.
    assert best.nonzero()[:, 0].tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18]


def test_windows_do_not_go_over_into_another_text() -> None:
    values = torch.zeros(24)
    values[11] = 5.0
    texts = [list(range(12)), list(range(12, 24))]
    have = fits(stored([1] * 24, texts), values, torch.zeros(24))
    assert (have[:12] == have.max()).any() and not (have[12:] == have.max()).any()


def test_what_a_row_may_not_see_is_no_context() -> None:
    store, values = stored([1] * 30), torch.zeros(30)
    values[14] = 5.0
    around = windows_of(store, Breaks())  # type: ignore[arg-type]
    seen = torch.arange(30)[None] >= 20
    near, one = torch.full((1, 1, 30), -3.0), torch.ones(1, 1, 1)
    hidden = values.masked_fill(~seen[0], -8.0)
    given = near, hidden[None, None], one, torch.zeros(1, 1, 30), seen
    have = fits_around(around, *given, 8.0, context.WORD_WEIGHT)[0, 0]
    assert torch.equal(have[:20], near[0, 0, :20])
    assert (have > NEG_INF).all()
