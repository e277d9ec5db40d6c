"""Finding text that is stored twice: against a plain Python model, and on a real model's states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.demo.text import reference_text
from cmr.memory.duplicates import Duplicates, merged, near_duplicates
from cmr.memory.sessions import NO_SESSION


def columns(texts: list[list[int]], size: int, session: list[int] | None = None) -> dict[str, Any]:
    """Blocks of several texts, one text after the other, each in a session of its own or given."""
    session = session or [0] * len(texts)
    ids, positions, owner, successor = [], [], [], []
    start = dict.fromkeys(session, 0)
    for text, who in zip(texts, session, strict=True):
        blocks = [text[i : i + size] for i in range(0, len(text), size)]
        for number, block in enumerate(blocks):
            pad = [0] * (size - len(block))
            ids.append(block + pad)
            first = start[who] + number * size
            positions.append([first + i for i in range(len(block))] + [-1] * len(pad))
            owner.append(who)
            successor.append(len(ids) if number + 1 < len(blocks) else -1)
        start[who] += len(text) + 1000
    return {
        "token_ids": torch.tensor(ids).view(-1, size),
        "positions": torch.tensor(positions).view(-1, size),
        "session": torch.tensor(owner, dtype=torch.int64),
        "created": torch.arange(1, len(ids) + 1),
        "successor": torch.tensor(successor, dtype=torch.int64),
    }


def alike(ids: torch.Tensor) -> Any:
    """States of equal tokens that are equal, and of others that are not."""
    table = torch.nn.functional.normalize(torch.randn(100, 16), dim=-1)
    return lambda at: table[ids[at]]


def found(pairs: Duplicates) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in pairs[:3]), strict=True))


@st.composite
def memories(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 4))
    tokens = st.lists(st.integers(0, 1), min_size=1, max_size=14)
    texts = draw(st.lists(tokens, min_size=1, max_size=4))
    owners = draw(st.lists(st.integers(0, 1), min_size=len(texts), max_size=len(texts)))
    c = columns(texts, size, owners)
    n = len(c["created"])
    empty = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) & (
        torch.rand(n) < 0.3
    )
    c["session"][empty] = NO_SESSION
    c["positions"][c["session"] == NO_SESSION] = -1
    order = torch.tensor(draw(st.permutations(range(n))))  # slots are in no order of time
    back = order.argsort()
    c = {name: column[order] for name, column in c.items()}
    c["successor"] = torch.where(c["successor"] >= 0, back[c["successor"]], -1)
    return c


def model(c: dict[str, Any]) -> list[tuple[int, ...]]:
    """Every block beside every place of every other one."""
    c = {name: column.tolist() for name, column in c.items()}
    n, size = len(c["created"]), len(c["token_ids"][0])

    def tokens(i: int) -> list[int]:
        pairs = zip(c["token_ids"][i], c["positions"][i], strict=True)
        return [t if p >= 0 else -1 for t, p in pairs]

    used = [c["session"][i] >= 0 and max(c["positions"][i]) >= 0 for i in range(n)]
    out = []
    for x in sorted(range(n), key=lambda i: c["created"][i]):
        places = []
        for y in range(n):
            if not (used[x] and used[y]) or c["session"][x] != c["session"][y]:
                continue
            z = c["successor"][y]
            goes_on = (
                z >= 0
                and c["session"][z] == c["session"][y]
                and min(c["positions"][y]) >= 0
                and c["positions"][z][0] == c["positions"][y][-1] + 1
            )
            run = tokens(y) + (tokens(z) if goes_on else [-1] * size)
            for offset in range(size if goes_on else 1):
                if run[offset : offset + size] == tokens(x):
                    beyond = z if goes_on and offset else -1
                    places.append((c["created"][y], -offset, y, beyond))
        if places and max(places)[0] > c["created"][x]:
            out.append((x, *max(places)[2:]))
    return out


@settings(max_examples=200, deadline=None)
@given(memories())
def test_it_is_the_plain_model(c: dict[str, Any]) -> None:
    pairs = near_duplicates(alike(c["token_ids"]), **c)
    assert found(pairs) == model(c)
    assert torch.allclose(pairs.similarity, torch.ones(len(pairs.earlier)))


def test_the_same_words_are_no_duplicate_where_their_states_differ() -> None:
    c = columns([[1, 2, 3, 4], [5, 6], [1, 2, 7, 1, 2, 3, 4]], 2)
    states = alike(c["token_ids"])
    same = near_duplicates(states, **c)
    assert found(same) == [(0, 4, 5), (1, 5, 6), (3, 4, 5)]
    assert same.similarity.min() > 0.99

    def elsewhere(at: torch.Tensor) -> torch.Tensor:
        out = states(at).clone()
        out[at >= 4] = states(at)[at >= 4].flip(-1)
        return out

    assert found(near_duplicates(elsewhere, **c)) == []
    assert found(near_duplicates(elsewhere, **c, threshold=-1.0)) == found(same)


def test_two_blocks_with_a_gap_between_them_are_not_read_as_one_text() -> None:
    c = columns([[1, 2], [0, 1, 2, 3]], 2)
    assert found(near_duplicates(alike(c["token_ids"]), **c)) == [(0, 1, 2)]
    c["positions"][2] += 1
    assert found(near_duplicates(alike(c["token_ids"]), **c)) == []


def test_what_is_only_a_part_of_one_block_is_no_duplicate_of_it() -> None:
    c = columns([[7], [6, 7]], 2)  # or the 6 would go when the 7 was recalled more often
    assert found(near_duplicates(alike(c["token_ids"]), **c)) == []


def test_an_empty_memory_has_no_duplicates() -> None:
    for texts in ([], [[1, 2], [1, 2]]):
        c = columns(texts, 2)
        c["session"][:] = NO_SESSION
        assert found(near_duplicates(alike(c["token_ids"]), **c)) == []


def test_shapes_that_do_not_fit_are_refused() -> None:
    c = columns([[1, 2, 3, 4]], 2)
    with pytest.raises(ValueError, match=r"created: \[2\] expected, got \[1\]"):
        near_duplicates(alike(c["token_ids"]), **{**c, "created": c["created"][:1]})
    with pytest.raises(ValueError, match=r"positions: \[2, 2\] expected, as token_ids, got"):
        near_duplicates(alike(c["token_ids"]), **{**c, "positions": c["positions"][:, :1]})


def merge(
    pairs: list[tuple[int, int, int]], counts: list[int], pinned: tuple[int, ...] = ()
) -> tuple[list[int], list[int]]:
    n = len(counts)
    columns_ = (torch.tensor(column, dtype=torch.int64) for column in zip(*pairs, strict=True))
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(pinned)] = True
    result = merged(
        Duplicates(*columns_, torch.ones(len(pairs))),
        torch.arange(1, n + 1),
        torch.tensor(counts),
        torch.zeros(n, dtype=torch.int64),
        torch.zeros(n),
        mask,
    )
    return result.goes.tolist(), result.access_count.tolist()


def test_the_earlier_one_goes_and_the_later_one_takes_over_from_it() -> None:
    assert merge([(0, 2, -1)], [3, 5, 4]) == ([0], [3, 5, 7])
    assert merge([(0, 1, 2)], [3, 5, 4]) == ([0], [3, 8, 7])


def test_the_last_access_and_the_relevance_are_the_larger_ones() -> None:
    pairs = Duplicates(*(torch.tensor([i]) for i in (0, 1, 2)), torch.ones(1))
    clock, worth = torch.tensor([7, 9, 0]), torch.tensor([0.5, 0.25, 0.75])
    nothing = torch.zeros(3, dtype=torch.int64)
    result = merged(pairs, torch.arange(3), nothing, clock, worth, nothing.bool())
    assert result.last_access.tolist() == [7, 9, 7]
    assert result.relevance.tolist() == [0.5, 0.5, 0.75]
    assert (clock.tolist(), worth.tolist()) == ([7, 9, 0], [0.5, 0.25, 0.75])


def test_what_was_recalled_more_often_or_is_pinned_stays() -> None:
    assert merge([(0, 2, -1)], [5, 5, 4]) == ([2], [9, 5, 4])
    assert merge([(0, 2, -1)], [5, 5, 9], pinned=(0,)) == ([2], [14, 5, 9])
    assert merge([(0, 2, -1)], [9, 5, 5], pinned=(2,)) == ([0], [9, 5, 14])
    assert merge([(0, 2, -1)], [9, 5, 5], pinned=(0, 2)) == ([], [9, 5, 5])
    assert merge([(0, 1, 2)], [9, 5, 5], pinned=(0,)) == ([], [9, 5, 5])


def test_a_block_that_stays_for_another_one_does_not_go_itself() -> None:
    # Three of a kind: both earlier ones go for the newest one.
    assert merge([(0, 2, -1), (1, 2, -1)], [1, 1, 1]) == ([0, 1], [1, 1, 3])
    # The newest one goes for the first one, so the second one waits for the next time.
    assert merge([(0, 2, -1), (1, 2, -1)], [9, 1, 1]) == ([2], [10, 1, 1])
    # 0 stands in 2 and 3, and 2 in 4: only one of the two may go now.
    assert merge([(0, 2, 3), (2, 4, -1)], [0] * 5)[0] == [2]
    assert merge([(2, 3, -1), (1, 2, -1)], [0, 9, 5, 1]) == ([3], [0, 9, 6, 1])


def test_on_real_states_only_what_was_said_again_is_found(smollm2: Any) -> None:
    model_, tokenizer = smollm2
    size = 32
    filler = tokenizer(reference_text()[:4000])["input_ids"][: 5 * size]
    facts = [
        f" The code of Mercury is {a}. The code of Venus is {b}. The old door is {c} at night."
        for a, b, c in (("4821", "7733", "locked"), ("8421", "7733", "locked"))
    ]
    facts += [facts[0].replace("locked", "unlocked"), facts[0].replace("Venus", "Mars")]
    said = [tokenizer(fact)["input_ids"] for fact in facts]
    stream = filler[:]
    for ids in said:
        assert len(ids) < size
        stream += (ids + filler)[:size]
    stream += [tokenizer(" Once more:")["input_ids"][0]] * 8 + filler  # shifted by 8 tokens
    stream += tokenizer(" That was all of it.")["input_ids"]
    with torch.no_grad():
        out = model_(torch.tensor([stream]), output_hidden_states=True)
    c = columns([stream], size)
    n = len(c["created"])
    states = torch.nn.functional.pad(out.hidden_states[12][0], (0, 0, 0, n * size - len(stream)))
    states = torch.nn.functional.normalize(states.float(), dim=-1).view(n, size, -1)
    pairs = near_duplicates(states.__getitem__, **c)
    again = pairs.earlier.tolist()
    # The first block has no text before it, and 5 to 8 say facts that differ in a word or a digit.
    assert [block for block in again if block] == [1, 2, 3, 4]
    assert (pairs.second >= 0).all()
