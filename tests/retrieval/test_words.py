"""Words of a question in stored passages: BM25 by the row's own frequencies, word by word."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from cmr.retrieval.ask import QueryParts, visible
from cmr.retrieval.words import words_of
from tests.retrieval.spoken import Words
from tests.retrieval.stored import BLOCK, question, store_of, write

SAID = " red lamp blue door green book grey coat old lamp new door red coats"


def bm25(asked: set[int], texts: list[list[int]]) -> tuple[list[float], dict[int, float]]:
    """Robertson and Zaragoza (2009), equation 3.15 with b = 0, k1 = 1.2; and how rare words are."""
    held = [set(text) for text in texts]
    rarity = {}
    for word in asked:
        holding = sum(word in words for words in held)
        rarity[word] = math.log((len(texts) - holding + 0.5) / (holding + 0.5) + 1)
    scores = [
        sum(rarity[w] * Counter(text)[w] * 2.2 / (Counter(text)[w] + 1.2) for w in asked)
        for text in texts
    ]
    return scores, rarity


def test_each_part_is_scored_by_its_own_words() -> None:
    torch.manual_seed(0)
    words = Words()
    known = words.ids(SAID)[0]
    store = store_of(30)
    for session, blocks in ((0, 8), (1, 7), (0, 5)):
        write(store, [session] * blocks, ids=known[torch.randint(len(known), (blocks, BLOCK))])
    store.positions[3, 1] = -1  # padding: its token id means nothing
    asked = torch.cat(
        [words.ids(" red lamps red. old door?"), words.ids(" blue coat book. door now!")]
    )
    vocabulary = words.vocabulary()
    # The last token of the second row does not ask.
    of = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, -1, -1]])[:, : asked.shape[1]]
    parts = QueryParts(of, torch.zeros(2, 2, dtype=torch.bool))
    ask = question([0, 1], token_ids=asked)
    have = words_of(asked, parts, vocabulary, store, visible(ask, store))
    for row, own in enumerate([[*range(8), *range(15, 20)], list(range(8, 15))]):
        stored = vocabulary.classes_of(store.token_ids).masked_fill(store.positions < 0, 0)
        blocks = [[c for c in stored[slot].tolist() if c] for slot in own]
        texts = [block + after for block, after in zip(blocks, [*blocks[1:], []], strict=True)]
        classes = vocabulary.classes_of(asked[row]).tolist()
        for part in range(2):
            wanted = {c for c, p in zip(classes, of[row].tolist(), strict=True) if p == part and c}
            scores, rarity = bm25(wanted, texts)
            assert have.scores[row, part, own].tolist() == pytest.approx(scores, abs=1e-4)
            for place, word in enumerate(classes):
                if word in wanted:
                    assert have.rarity[row, place].item() == pytest.approx(rarity[word], abs=1e-4)


def test_what_others_store_says_nothing() -> None:
    words = Words()
    known = words.ids(SAID)[0]
    asked = words.ids(" red lamp and door")
    vocabulary, found = words.vocabulary(), []
    for others in (0, 9):
        torch.manual_seed(1)
        store = store_of(30)
        write(store, [0] * 6, ids=known[torch.randint(len(known), (6, BLOCK))])
        write(store, [1] * others, ids=known[:1].expand(others, BLOCK).clone())
        seen = visible(question([0], token_ids=asked), store)
        have = words_of(asked, QueryParts.one(asked), vocabulary, store, seen)
        found.append((have.rarity, have.scores[..., :6]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_word_in_another_form_is_found() -> None:
    words = Words()
    text = words.ids(" she adopted a dog")
    asked = words.ids(" adopting")
    store = store_of(8)
    write(store, [0] * 2, ids=torch.cat([words.ids(" it rained all day"), text]))
    store.successor[:] = -1
    seen = visible(question([0], token_ids=asked), store)
    have = words_of(asked, QueryParts.one(asked), words.vocabulary(), store, seen)
    assert have.scores[0, 0, 0] == 0 and have.scores[0, 0, 1] > 0
