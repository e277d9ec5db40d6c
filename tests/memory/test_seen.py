"""A text that comes again is known as far as it is the same, and by nothing that is gone."""

from __future__ import annotations

import torch

from cmr.memory import seen
from cmr.memory.journal import Journal
from cmr.memory.seen import Run, SeenText, grown, recognised, stretches
from cmr.memory.sessions import SessionTable


def ids(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def row(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count, dtype=torch.int32)


def seen_text(*runs: tuple[int, int, torch.Tensor], cuts: tuple[int, ...] = ()) -> SeenText:
    text = SeenText()
    for run in runs:
        text = text.with_run(Run(*run), cuts)
    return text


def test_runs_that_follow_each_other_become_one() -> None:
    text = seen_text((2, 10, row(5, 3)), (5, 13, row(8, 2)), (8, 16, row(1, 1)))
    assert [(r.at, r.position, r.ids.tolist()) for r in text.runs] == [
        (2, 10, [5, 6, 7, 8, 9]),
        (8, 16, [1]),
    ]
    assert text.ids.tolist() == [-1, -1, 5, 6, 7, 8, 9, -1, 1] and len(text) == 9
    # The flat ids are the same, made at once or grown with the text.
    assert torch.equal(text.ids, SeenText(text.runs).ids)


def test_a_prefix_is_known_whatever_stands_in_its_gaps() -> None:
    texts = {7: seen_text((2, 0, row(10, 4)), (8, 6, row(20, 2)))}
    for gap in (0, 99):
        sent = ids(gap, gap, 10, 11, 12, 13, gap, gap, 20, 21, 50)
        known = recognised(texts, sent, 4)
        assert (known.key, known.tokens) == (7, 10)
        assert known.mask.nonzero()[:, 0].tolist() == [2, 3, 4, 5, 8, 9]
    assert recognised(texts, ids(1, 1, 11, 11), 4).key is None
    assert recognised({}, sent, 4)[:2] == (None, 0)
    short = recognised(texts, sent[:5], 4)
    assert (short.key, short.tokens, int(short.mask.sum())) == (7, 5, 3)


def test_a_text_that_goes_on_differently_is_known_in_whole_parts_and_blocks() -> None:
    text = seen_text((0, 0, row(0, 30)), cuts=(13,))

    def common(same: int) -> int:
        return text.common(torch.cat([row(0, same), row(100, 20)]), 8)

    # Whole blocks but one from the beginning, from 13 on whole blocks but one behind that place.
    assert [common(n) for n in (3, 9, 12, 13, 20, 21, 29, 30)] == [0, 0, 0, 13, 13, 13, 21, 30]


def test_a_message_that_begins_as_another_one_did_is_not_half_known() -> None:
    # A template of 12 tokens stands before both, and is not stored.
    text = seen_text((12, 0, row(12, 9)))
    sent = torch.cat([row(0, 16), row(100, 5)])
    assert text.common(sent, 8) == 12
    assert recognised({1: text}, sent, 8)[:2] == (None, 0)


def test_the_text_that_says_most_is_taken_and_the_newest_of_equals() -> None:
    one, two = seen_text((0, 0, row(0, 8))), seen_text((0, 50, row(0, 16)))
    assert recognised({1: one, 2: two}, row(0, 40), 8).key == 2
    assert recognised({1: one, 2: two}, row(0, 8), 8).key == 2
    assert recognised({2: two, 1: one}, row(0, 8), 8).key == 1


def test_another_text_at_a_place_takes_what_stood_behind_it() -> None:
    text = seen_text((0, 0, row(0, 10)))
    assert text.with_run(Run(6, 40, row(90, 2))).ids.tolist() == [0, 1, 2, 3, 4, 5, 90, 91]


def test_what_is_forgotten_leaves_a_gap_that_can_be_filled() -> None:
    text = seen_text((0, 100, row(0, 10)), cuts=(4, 10))
    left = text.only(torch.tensor([100, 101, 105, 106]))
    assert left.ids.tolist() == [0, 1, -1, -1, -1, 5, 6]
    assert left.cuts == (4,)
    again = left.with_run(Run(2, 300, row(2, 3)))
    assert again.ids.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert [r.position for r in again.runs] == [100, 300, 105]
    for run in left.runs:  # nothing keeps the rest alive
        assert run.ids.untyped_storage().nbytes() == 4 * len(run.ids)


def test_texts_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(seen, "MAX_TEXTS", 3)
    monkeypatch.setattr(seen, "MAX_TOKENS", 20)
    texts: seen.Texts = {}
    for key in range(5):
        texts = grown(texts, key, seen_text((0, 0, row(0, 4))))
    assert list(texts) == [2, 3, 4]
    texts = grown(texts, 2, seen_text((0, 0, row(0, 5))))  # it grew last
    assert list(texts) == [3, 4, 2]
    texts = grown(texts, 9, seen_text((0, 0, row(0, 12))), instead=4)
    assert list(texts) == [2, 9]


def test_stretches() -> None:
    assert stretches(torch.tensor([True, True, False, True])) == [(0, 2), (3, 4)]
    assert stretches(torch.tensor([False])) == stretches(torch.tensor([]).bool()) == []


def test_a_change_that_is_taken_back_leaves_the_texts_as_they_were() -> None:
    table = SessionTable(journal=Journal())
    number = table.create("anna")
    before = {1: seen_text((0, 0, row(0, 4)))}
    table.note_texts(number, before)
    try:
        with table.journal.change():
            table.keep_texts_at(number, torch.tensor([0]))
            table.remove("anna")
            raise KeyError
    except KeyError:
        pass
    assert table.texts(number) is before
    table.remove("anna")
    assert not table.texts(number)
