"""Every sentence of what is asked is a query of its own; one that singles something out wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cmr.config import RetrievalConfig
from cmr.integration.capture.text_search import TextSearch
from cmr.integration.reweave.recall import sureness
from cmr.memory.sessions import NO_SESSION
from cmr.retrieval import Ask, Retriever, RollingQuery
from cmr.retrieval.ask import QueryParts
from cmr.retrieval.selection import rule_for
from cmr.retrieval.strategies.asked import FEW_CERTAINTY, MARKED, WORD_WEIGHT, Asked
from cmr.retrieval.strategies.registry import Parts, make_strategy
from cmr.retrieval.words import words_of
from tests.kernels.helpers.compare import assert_close
from tests.retrieval.spoken import Words
from tests.retrieval.stored import BLOCK, HIDDEN, question, store_of, write

SENTENCES = " I sat here for days. Where is the lamp? It was so good to see you again."


def spoken(text: str = SENTENCES) -> tuple[Words, torch.Tensor]:
    words = Words()
    return words, words.ids(text)


def searching(words: Words, **settings) -> Retriever:
    config = RetrievalConfig(**{"neighbours": 0, "threshold": 0.0, "gain": 0.0, **settings})
    return Retriever(config, vocabulary=words.vocabulary())


def filled(words: Words, blocks: int = 60, sessions: int = 1):
    store = store_of(80)
    ids = torch.randint(len(words), (blocks, BLOCK))
    write(store, [n % sessions for n in range(blocks)], ids=ids)
    return store


def asks_for(store, block: int, ids: torch.Tensor, of: torch.Tensor, part: int) -> torch.Tensor:
    """States at random, but those of one part, which are near those of a block."""
    states = torch.randn(1, ids.shape[1], HIDDEN)
    mine = (of[0] == part).nonzero()[:, 0]
    states[0, mine] = (
        4 * store.index[block][torch.arange(len(mine)) % BLOCK] + 0.8 * states[0, mine]
    )
    return states


def test_the_part_that_singles_something_out_wins() -> None:
    """Wherever it stands, with no question mark, and however much is said around it."""
    words, ids = spoken(SENTENCES + " we had such a nice time." * 40)
    of = words.vocabulary().parts(ids, None).of
    unknown = torch.full_like(ids, 10**6)  # words say nothing here
    parts = QueryParts(of, torch.zeros(1, int(of.max()) + 1, dtype=torch.bool))
    find, found = searching(words, blocks=1), {"parts": 0, "whole": 0}
    for seed in range(12):
        torch.manual_seed(seed)
        store = filled(words)
        states = asks_for(store, 30, ids, of, seed % 3)
        ask = question([0], states=states, token_ids=unknown, located=True, parts=parts)
        for name, asked in (("parts", ask), ("whole", replace(ask, parts=QueryParts.one(ids)))):
            found[name] += 30 in find.search(asked, store).table[0, 0].tolist()
    assert found["parts"] == 12 and found["whole"] < 8, found


def test_words_count_beside_states() -> None:
    torch.manual_seed(0)
    words, ids = spoken(" it is the one with umbrella.")
    store, strategy = filled(words), Asked(words.vocabulary())
    rare = int(ids[0, 5])
    store.token_ids[store.token_ids == rare] = 0
    store.token_ids[20, 2] = rare
    ask = question([0], states=torch.randn(1, ids.shape[1], HIDDEN), token_ids=ids, located=True)
    unsaid = replace(ask, token_ids=ids.masked_fill(ids == rare, -1))
    more = strategy.score(ask, store).passages - strategy.score(unsaid, store).passages
    assert more[0, :60].argmax().item() in (19, 20)


def test_scores_are_those_of_plain_sums() -> None:
    torch.manual_seed(3)
    words, ids = spoken()
    store, vocabulary = filled(words), words.vocabulary()
    mask = torch.rand(1, ids.shape[1]) > 0.2
    ask = question([0], states=torch.randn(1, ids.shape[1], HIDDEN), token_ids=ids, mask=mask)
    ask = replace(ask, located=True)
    have = Asked(vocabulary).score(ask, store)
    maxima = ask.maxima(store)[0, :, :60].double()
    z = (maxima - maxima.mean(1, keepdim=True)) / maxima.std(1, keepdim=True, correction=0)
    z = torch.maximum(z, torch.cat([z[:, 1:], torch.full_like(z[:, :1], -8.0)], 1))
    of, marked = vocabulary.parts(ids, mask)
    seen = torch.ones(1, 60, dtype=torch.bool)
    said = words_of(ids, QueryParts(of, marked), vocabulary, store, seen)
    lines = []
    for part in range(marked.shape[1]):
        own = of[0] == part
        weights = z[own].amax(1).clamp(min=0) * (1 + said.rarity[0, own])
        states = (weights[:, None] * z[own]).sum(0) / weights.sum()
        spoken_ = said.scores[0, part].double()
        both = deviations(states) + WORD_WEIGHT * deviations(spoken_).clamp(-8, 8)
        lines.append(deviations(both) * (MARKED if marked[0, part] else 1.0))
    want = torch.stack(lines).amax(0)
    assert_close("scores", have.passages[0, :60], want.float(), 1e-4, 1e-4)


def deviations(values: torch.Tensor) -> torch.Tensor:
    spread = values.std(correction=0)
    return (values - values.mean()) / spread if spread > 1e-9 else values * 0


def test_a_row_is_scored_as_if_alone_whatever_others_store() -> None:
    words, ids = spoken()
    strategy, found = Asked(words.vocabulary()), []
    for others in (0, 20):
        torch.manual_seed(5)
        store = store_of(80)
        asked = torch.randn(1, ids.shape[1], HIDDEN)
        states, texts = torch.randn(30, BLOCK, HIDDEN), torch.randint(len(words), (30, BLOCK))
        write(store, [0] * 30, states, texts)
        write(store, [1] * others)
        rows = [0] if not others else [0, 1]
        ask = question(
            rows,
            states=asked.expand(len(rows), -1, -1),
            token_ids=ids.expand(len(rows), -1),
            located=True,
        )
        have = strategy.score(ask, store)
        assert have.certainty is not None
        found.append((have.passages[:1, :30], have.certainty[:1]))
        assert (have.passages[0, 30:] == -torch.inf).all()
    for name, one, other in zip(("scores", "certainty"), *found, strict=True):
        assert_close(name, one, other, 1e-4, 1e-4)


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_few_blocks_and_rows_that_see_none(blocks: int) -> None:
    words, ids = spoken()
    store = filled(words, blocks)
    ask = question(
        [0, 7, NO_SESSION],
        states=torch.randn(3, ids.shape[1], HIDDEN),
        token_ids=ids.expand(3, -1),
        located=True,
    )
    found = searching(words).search(ask, store)
    assert (found.certainty > 0).tolist() == [blocks > 0, False, False]
    assert (found.table >= 0).any(-1).any(-1).tolist() == [blocks > 0, False, False]


@pytest.mark.parametrize(("blocks", "sure"), [(2, True), (11, True), (12, False)])
def test_a_question_to_few_blocks_is_certain(blocks: int, sure: bool) -> None:
    """Nothing can stand out there; a text that goes on is read with a middling certainty."""
    torch.manual_seed(0)
    words, ids = spoken()
    ask = question([0], states=torch.randn(1, ids.shape[1], HIDDEN), token_ids=ids, located=True)
    search, store = searching(words), filled(words, blocks)
    certain = [
        search.search(replace(ask, located=x), store).certainty.item() for x in (True, False)
    ]
    few = [FEW_CERTAINTY, rule_for(False).few_certainty]
    assert (certain == pytest.approx(few)) == sure
    assert sureness(torch.tensor(few)).tolist()[0] == 1.0


@pytest.mark.parametrize("known", [True, False])
def test_a_text_that_stands_there_twice_is_found(known: bool) -> None:
    """No block stands out among equal ones: that they fit alike is no reason to find none."""
    torch.manual_seed(0)
    words, ids = spoken()
    store = filled(words, 2)
    for column in (store.index, store.token_ids):
        column[1] = column[0]
    states = torch.randn(1, ids.shape[1], HIDDEN)
    ask = question([0], states=states, token_ids=ids if known else None, located=True)
    search = searching(words) if known else Retriever(searching(words).config)
    found = search.search(ask, store)
    assert (found.table >= 0).any() and found.certainty.item() > 0


def test_a_row_that_asks_nothing_finds_nothing() -> None:
    words, ids = spoken()
    store = filled(words)
    mask = torch.zeros(1, ids.shape[1], dtype=torch.bool)
    ask = question([0], states=torch.randn(1, *mask.shape[1:], HIDDEN), token_ids=ids, mask=mask)
    for located in (False, True):
        found = searching(words).search(replace(ask, located=located), store)
        assert (found.table < 0).all() and found.certainty.tolist() == [0.0]


def test_a_text_that_goes_on_is_one_part() -> None:
    words, ids = spoken()
    store, strategy = filled(words), Asked(words.vocabulary())
    ask = question([0], states=torch.randn(1, ids.shape[1], HIDDEN), token_ids=ids)
    have, want = (
        strategy.score(ask, store),
        strategy.score(replace(ask, parts=QueryParts.one(ids)), store),
    )
    assert torch.equal(have.passages, want.passages)
    assert not torch.equal(
        have.passages, strategy.score(replace(ask, located=True), store).passages
    )


def test_without_token_ids_the_states_alone_ask() -> None:
    words, _ = spoken()
    store = filled(words)
    ask = question([0], token_ids=None)
    have = Asked(words.vocabulary()).score(ask, store)
    want = make_strategy("maxsim", Parts(RetrievalConfig())).score(ask, store)
    assert torch.equal(have.passages, want.passages)


def test_a_question_goes_on_asking_beside_the_answer() -> None:
    """A search while decoding is that of the question's parts and one more, the answer so far."""
    torch.manual_seed(2)
    words, ids = spoken()
    store, find = filled(words, sessions=2), searching(words, blocks=3)
    ids = ids.expand(2, -1)
    parts = words.vocabulary().parts(ids, None)
    said = question([0, 1], states=torch.randn(2, ids.shape[1], HIDDEN), token_ids=ids)
    asked = replace(said, located=True, parts=parts)
    answer = question([0, 1], states=torch.randn(2, 7, HIDDEN), token_ids=ids[:, :7])
    rolling = RollingQuery(2, 4, store, asked.sessions.clone(), True, None, asked)
    rolling.add(answer.states, None, answer.token_ids)
    rows = torch.tensor([1, 0])

    def whole(rows: torch.Tensor) -> Ask:
        of = torch.full((2, 4), parts.marked.shape[1])
        more = QueryParts(
            torch.cat([parts.of, of], 1), torch.nn.functional.pad(parts.marked, (0, 1))
        )
        states = torch.cat([said.states, answer.states[:, -4:]], 1)
        tokens = torch.cat([ids, answer.token_ids[:, -4:]], 1)
        return replace(asked, states=states, token_ids=tokens, parts=more).of_rows(rows)

    for order in (torch.arange(2), rows):
        if order is rows:
            twin = rolling.select(rows)
            rolling.reorder(rows)
            assert torch.equal(
                find.search_again(twin, store).table, find.search(whole(rows), store).table
            )
        have, want = find.search_again(rolling, store), find.search(whole(order), store)
        assert torch.equal(have.table, want.table)
        assert_close("scores", have.scores, want.scores, 1e-4, 1e-4)


def test_what_further_passages_add_is_measured_on_the_part_that_found_the_first() -> None:
    torch.manual_seed(4)
    words, ids = spoken()
    store, vocabulary = filled(words), words.vocabulary()
    of = vocabulary.parts(ids, None).of
    states = asks_for(store, 30, ids, of, 1)
    ask = question([0], states=states, token_ids=ids, located=True)
    found = Asked(vocabulary).score(ask, store)
    assert found.values is not None and found.shares is not None and found.winner is not None
    assert found.values.shape == (1, ids.shape[1], store.high_water)
    shares = found.shares[0, found.winner[0, 30]]
    assert shares.sum().item() == pytest.approx(1.0) and shares[of[0] != 1].abs().sum() == 0


class Waits(TorchDispatchMode):
    """Notes whatever a host would have to wait for, were the tensors on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if any(
            part in name for part in ("_local_scalar_dense", "nonzero", "unique", "masked_select")
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_search_while_decoding_waits_for_nothing() -> None:
    words, ids = spoken()
    store, vocabulary = filled(words), words.vocabulary()
    parts = vocabulary.parts(ids, None)
    states = torch.randn(1, ids.shape[1], HIDDEN)
    asked = question([0], states=states, token_ids=ids, located=True, parts=parts)
    rolling = RollingQuery(1, 4, store, asked.sessions.clone(), True, None, asked)
    rolling.add(torch.randn(1, 2, HIDDEN), None, ids[:, :2])
    ask, strategy = rolling.ask(), Asked(vocabulary)
    with Waits() as waits:
        found = strategy.score(ask, store)
    assert waits.found == []
    with Waits() as waits:
        bool(found.passages.any())
    assert waits.found


def test_windows_are_of_the_store_that_is_searched() -> None:
    """Though another one is as large and has changed as often, as parts of one store have."""
    words, _ = spoken()
    vocabulary = words.vocabulary()
    one, other = filled(words), filled(words)
    other.successor.fill_(-1)
    strategy = Asked(vocabulary)
    first = strategy._windows_of(one)
    assert strategy._windows_of(one) is first
    assert (one.ledger.changes, one.high_water) == (other.ledger.changes, other.high_water)
    second = strategy._windows_of(other)
    assert second is not first
    assert not torch.equal(second.inside, first.inside)


def test_a_kept_question_follows_its_rows() -> None:
    words, ids = spoken()
    said = question(
        [4, 5], states=torch.randn(2, ids.shape[1], HIDDEN), token_ids=ids.expand(2, -1)
    )
    parts = words.vocabulary().parts(said.token_ids, None)
    search = TextSearch()
    search.question = replace(said, mask=torch.rand(2, ids.shape[1]) > 0.5, parts=parts)
    mask, rows = search.question.mask, torch.tensor([1, 0])
    for turn in (search.reorder, search.select):
        turn(rows)
    assert torch.equal(search.question.states, said.states)  # there and back
    search.select(torch.tensor([1, 1, 0]))
    assert search.question.sessions.tolist() == [5, 5, 4]
    assert torch.equal(search.question.mask, mask[[1, 1, 0]])
    assert len(search.question.parts.of) == len(search.question.token_ids) == 3
    search.forget()
    assert search.question is None
