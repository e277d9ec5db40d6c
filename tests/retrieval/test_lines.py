"""What is read beside a passage ends with the line that it stands in."""

from __future__ import annotations

import pytest
import torch

from cmr.config import RetrievalConfig
from cmr.retrieval import Choice, Retriever
from tests.retrieval.spoken import Words
from tests.retrieval.stored import BLOCK, HIDDEN, question, store_of, write

BLOCKS, PASSAGE = 12, 5
"""Blocks of the text, and the one with which the passage begins that is asked for."""
CORE = range(PASSAGE * BLOCK, (PASSAGE + 2) * BLOCK)
BESIDE = range((PASSAGE - 1) * BLOCK, (PASSAGE + 3) * BLOCK)
"""Tokens of the passage, and of all that is read where no line ends."""


def read_of(breaks: tuple[int, ...], neighbours: int = 1, known: bool = True) -> list[int]:
    """Positions that are read of a text in which lines end with the tokens at `breaks`."""
    torch.manual_seed(0)
    words, store = Words(), store_of(BLOCKS)
    (end, word), ids = words.ids("\n word")[0], torch.empty(BLOCKS * BLOCK, dtype=torch.int64)
    ids.fill_(int(word))[list(breaks)] = int(end)
    states = torch.randn(BLOCKS, BLOCK, HIDDEN)
    write(store, [0] * BLOCKS, states, ids.view(BLOCKS, BLOCK))
    config = RetrievalConfig(blocks=1, neighbours=neighbours, threshold=0.0)
    search = Retriever(config, vocabulary=words.vocabulary() if known else None)
    asked = states[PASSAGE : PASSAGE + 2].flatten(0, 1)[None]
    ask = question([0], states=asked, token_ids=torch.full(asked.shape[:2], int(word)))
    return tokens_read(search.search(ask, store), store)


def tokens_read(choice: Choice, store) -> list[int]:
    slots = choice.table.flatten(1)
    places = store.positions[slots.clamp(min=0)].masked_fill((slots < 0)[..., None], -1)
    return sorted(places[choice.reads(places)].tolist())


@pytest.mark.parametrize("known", [True, False])
def test_where_no_line_ends_all_of_it_is_read(known: bool) -> None:
    assert read_of((), known=known) == list(BESIDE)


def test_it_ends_with_the_lines_that_the_passage_begins_and_ends_with() -> None:
    front, back = BESIDE.start + 1, BESIDE.stop - 2
    assert read_of((front, back)) == list(range(front + 1, back + 1))
    # The nearest ends count, and those inside the passage do not.
    near = (front - 1, front, CORE.start + 2, back, back + 1)
    assert read_of(near) == list(range(front + 1, back + 1))


def test_a_line_that_the_passage_ends_goes_on_in_no_neighbour() -> None:
    assert read_of((CORE.start - 1, CORE.stop - 1)) == list(CORE)
    assert read_of((CORE.stop - 2,)) == list(BESIDE)


def test_without_a_vocabulary_or_neighbours_lines_are_not_looked_at() -> None:
    breaks = (BESIDE.start + 1, BESIDE.stop - 2)
    assert read_of(breaks, known=False) == list(BESIDE)
    assert read_of(breaks, neighbours=0) == list(CORE)


def test_a_token_that_one_passage_needs_is_read_whoever_has_its_block() -> None:
    """Of two passages in a row the first has the second's first block as a neighbour."""
    whole = Choice(
        torch.arange(8).view(1, 2, 4), torch.zeros(1, 2, 4).long(), torch.ones(1, 2), torch.ones(1)
    )
    places = torch.arange(8 * BLOCK).view(1, 8, BLOCK)
    choice = whole._replace(within=torch.tensor([[[6, 13], [12, 20]]]))
    assert places[choice.reads(places)].tolist() == list(range(6, 21))
    assert whole.reads(places).all()
