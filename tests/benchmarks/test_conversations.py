"""Conversations in the published shape: turns are where they are said to be, shares add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.conversations import __main__ as command
from benchmarks.conversations import finders, locomo
from benchmarks.conversations.finders import Remembering, Retrieving
from benchmarks.conversations.report import FORMS, summaries, together
from benchmarks.shared import rows
from benchmarks.shared.command import UsageError
from benchmarks.texts.everyday import PLACES, TALK, talk
from cmr.evaluation.passages import tokens_of
from cmr.evaluation.prompts import encode

SMALL = ("I have been to the market.", "Nice, was it busy?", "A little, yes.", "I see.")
PLANTED = {
    "D1:3": "My new bicycle is a green Peugeot from the flea market in Lille.",
    "D2:5": "We named the parrot Admiral because of his blue shoulders.",
    "D2:9": "My aunt Rosalind taught me to bake rye bread with caraway.",
}


def made() -> dict[str, Any]:
    """A conversation of two sessions with three planted turns, a picture and six questions."""
    told: dict[str, Any] = {"speaker_a": "Ines", "speaker_b": "Ralf"}
    for session in (1, 2):
        turns = []
        for i in range(1, 25):
            name = f"D{session}:{i}"
            said = PLANTED.get(name, SMALL[i % len(SMALL)])
            turns.append({"speaker": ("Ines", "Ralf")[i % 2], "dia_id": name, "text": said})
        told[f"session_{session}"] = turns
        told[f"session_{session}_date_time"] = f"1{session}:00 on 3 May 2021"
    told["session_2"][4]["blip_caption"] = "a parrot on a balcony"
    told["qa"] = [
        {"question": "What did Ralf name the parrot?", "evidence": ["D2:5"], "category": 4},
        {"question": "Who taught Ralf to bake bread?", "evidence": ["D2:9"], "category": 2},
        {"question": "What pets and bikes are there?", "evidence": ["D1:3; D2:5"], "category": 1},
        {"question": "What is not told?", "evidence": ["D1:3"], "category": 5},
        {"question": "What is told nowhere?", "evidence": [], "category": 4},
        {"question": "What is told in no turn?", "evidence": ["D", "D9:1"], "category": 3},
    ]
    return told


@pytest.fixture(scope="module")
def tokenizer(smollm2: tuple[Any, Any]) -> Any:
    return smollm2[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "7.json").write_text(json.dumps(made()), encoding="utf-8")
    return tmp_path


def test_turns_are_the_tokens_of_their_lines(folder: Path, tokenizer: Any) -> None:
    told = locomo.load(folder, "7", tokenizer)
    text = tokenizer.decode(told.token_ids)
    assert text.startswith("Conversation on 11:00 on 3 May 2021\nRalf: ")
    parrot, bread, both = told.questions
    assert tokenizer.decode(told.token_ids[slice(*parrot.evidence[0])]) == (
        f"Ralf: {PLANTED['D2:5']} [shares a picture of a parrot on a balcony]"
    )
    assert [tokenizer.decode(told.token_ids[a:b]) for a, b in bread.evidence] == [
        f"Ralf: {PLANTED['D2:9']}"
    ]
    assert both.evidence[1] == parrot.evidence[0]


def test_only_what_turns_can_answer_is_asked(folder: Path, tokenizer: Any) -> None:
    asked = locomo.load(folder, "7", tokenizer).questions
    assert [q.number for q in asked] == [0, 1, 2]
    assert [len(q.evidence) for q in asked] == [1, 1, 2]


def test_sessions_are_read_in_the_order_of_their_numbers(tokenizer: Any) -> None:
    told = {
        f"session_{n}": [{"speaker": "A", "dia_id": f"D{n}:1", "text": str(n)}] for n in (10, 9)
    }
    told |= {f"session_{n}_date_time": "noon" for n in (10, 9)}
    text, turns = locomo.written(told)
    assert list(turns) == ["D9:1", "D10:1"] and text.index("A: 9") < text.index("A: 10")


def test_another_file_is_said_to_be_one(folder: Path, tokenizer: Any) -> None:
    (folder / "8.json").write_text('{"qa": 1}')
    with pytest.raises(UsageError, match=r"8\.json: a conversation of LoCoMo expected"):
        locomo.load(folder, "8", tokenizer)


def test_names_are_looked_for_before_anything_is_loaded(folder: Path) -> None:
    assert locomo.require(folder, None) == locomo.require(folder, ["7"]) == ["7"]
    with pytest.raises(UsageError, match=r"names out of 7 expected, got '9'"):
        locomo.require(folder, ["7", "9"])
    with pytest.raises(UsageError, match=r"NAME\.json files expected"):
        locomo.require(folder / "none", None)


def test_a_turn_is_found_from_sixty_percent_of_its_tokens_on() -> None:
    turns = ((0, 10), (20, 30))
    assert command.share_found(turns, set(range(6))) == 0.5
    assert command.share_found(turns, set(range(5))) == 0.0
    assert command.share_found(turns, set(range(4, 26))) == 1.0


def test_a_sample_is_drawn_from_all_conversations() -> None:
    told = [
        locomo.Conversation(n, [], tuple(locomo.Asked(i, "", 4, ()) for i in range(20)))
        for n in "ab"
    ]
    every = command.drawn(told, None, 0)
    assert len(every) == 40 and command.drawn(told, 99, 0) == every
    some = command.drawn(told, 10, 0)
    assert len(some) == 10 and some < every and {name for name, _ in some} == {"a", "b"}
    assert command.drawn(told, 10, 0) == some != command.drawn(told, 10, 1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_everyday_talk_stands_where_it_is_said_to(place: str, seed: int, tokenizer: Any) -> None:
    asked = "Where did the parrot go?"
    marked = set()
    for number in range(len(TALK[seed][place])):
        said = talk(place, number, seed)
        assert bool(said.before) == (place != "behind") and bool(said.behind) == (place != "before")
        words = sum(len(encode(tokenizer, part)) for part in (said.before, said.behind))
        assert 30 <= words <= 120
        whole = said.around(asked)
        assert asked[:-1] in whole and ("?" in whole) is said.marks
        marked.add(said.marks)
    assert marked == {True, False}
    assert talk(place, 0, seed) == talk(place, 4, seed + 2) != talk(place, 0, seed + 1)


class Fixed:
    """Shows the same tokens for everything."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self.always = spans
        self.heard: list[str] = []

    def spans(self, message: str) -> list[tuple[int, int]]:
        self.heard.append(message)
        return self.always


@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_text_retrievers_show_so_many_tokens_for_every_message(
    name: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finders, "Dense", Dense)
    ids = encode(tokenizer, locomo.written(made())[0])
    other = Retrieving(name, tokenizer, ids, tokens=150)
    for words in ("What did Ralf name the parrot?", "Hm."):
        spans = other.spans(words)
        assert len(tokens_of(spans)) == 150 and len(spans) >= 2


class Dense:
    """Likes the passages in the order in which they stand."""

    def __init__(self, texts: list[str]) -> None:
        self.many = len(texts)

    def scores(self, message: str) -> np.ndarray:
        return -np.arange(self.many, dtype=np.float32)


def test_a_question_is_a_row_with_every_form_of_it() -> None:
    asked = locomo.Asked(3, "What?", 4, ((0, 10), (200, 210)))
    told = locomo.Conversation("7", [0] * 500, (asked,))
    memory, nothing = Fixed([(0, 100), (80, 130)]), Fixed([])
    found = command.measure(told, [asked], {"memory": memory, "bm25": nothing}, FORMS, 0)
    (row,) = found
    assert row["bare"] == {"marks": True, "memory": [0.5, 130], "bm25": [0.0, 0]}
    assert row["before"]["marks"] is False and row["both"]["memory"] == [0.5, 130]  # 3 % 4: no mark
    assert memory.heard[0] == "What?" and all("What" in said for said in memory.heard)


def details() -> list[dict[str, Any]]:
    """Forty questions: memory finds all bare ones and half of the wrapped, BM25 every second."""
    return [
        {"conversation": "7", "question": i, "category": 1 + i % 4}
        | {
            form: {"marks": i % 8 < 4, "memory": [float(form == "bare" or i % 8 < 4), 200],
                   "bm25": [float(i % 2), 100]}
            for form in FORMS
        }
        for i in range(40)
    ]  # fmt: skip


def test_summaries_say_what_the_details_hold(capsys: pytest.CaptureFixture[str]) -> None:
    found = {(r["system"], r["form"]): r for r in summaries(details())}
    assert len(found) == 2 * (len(FORMS) + 1)
    bare, wrapped = found["memory", "bare"], found["memory", "wrapped"]
    assert (bare["found"], bare["questions"], bare["asked"], bare["tokens"]) == (1.0, 40, 40, 200)
    assert bare["against"]["bm25"]["more"] == 0.5
    low, high = bare["against"]["bm25"]["interval"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert (wrapped["found"], wrapped["questions"], wrapped["asked"]) == (0.5, 40, 120)
    assert wrapped["of_bare"]["share"] == 0.5
    assert (wrapped["marked"]["found"], wrapped["unmarked"]["found"]) == (1.0, 0.0)
    assert found["bm25", "bare"]["by_category"]["several facts"]["found"] == 0.0
    assert found["bm25", "bare"]["by_category"]["time"]["found"] == 1.0
    assert "memory wrapped   50.0 %" in capsys.readouterr().out


def test_runs_are_put_together_question_by_question() -> None:
    def row(number: int, *forms: str, marks: bool = True, **found: float) -> dict[str, Any]:
        systems = {name: [value, 200] for name, value in found.items()}
        head = {"run": "x", "conversation": "7", "question": number, "category": 4}
        return head | {form: {"marks": marks} | systems for form in forms}

    texts = [row(0, "bare", "both", bm25=0.2), row(1, "bare", "both", bm25=0.3)]
    now = [row(1, "bare", memory=1.0), row(2, "bare", memory=0.0)]
    before = [row(1, "bare", "both", memory=0.5, bm25=0.4)]
    (found,) = together([("memory", texts), ("memory", now), ("before", before)])
    assert (found["question"], found["category"]) == (1, 4) and "both" not in found
    assert found["bare"] == {
        "marks": True, "bm25": [0.4, 200], "memory": [1.0, 200], "before": [0.5, 200]
    }  # fmt: skip
    assert "before" in summaries([found])[1]["against"]
    with pytest.raises(UsageError, match="none in common"):
        together([("memory", texts[:1]), ("memory", now)])
    with pytest.raises(UsageError, match="seeds differ"):
        together([("memory", texts), ("memory", [row(1, "bare", marks=False, memory=1.0)])])


def test_memory_finds_what_was_said(
    folder: Path, smollm2: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rows, "into", tmp_path / "rows")
    words = ["--data", str(folder), "--systems", "memory", "bm25", "--results", str(rows.into)]
    words += ["--tokens", "100"]
    monkeypatch.setattr(command, "load_model", lambda *_: smollm2)
    command.main(words)
    bare, lexical = rows.load("conversations", rows.into)
    assert (bare["system"], bare["questions"], bare["form"]) == ("memory", 3, "bare")
    assert bare["found"] >= 0.8 and 64 <= bare["tokens"] <= 256
    assert lexical["system"] == "bm25" and lexical["tokens"] == 100
    written = (rows.into / "conversations_details.jsonl").read_text()
    assert "parrot" not in written and len(written.splitlines()) == 3


def test_a_conversation_is_forgotten_before_the_next_one(smollm2: tuple[Any, Any]) -> None:
    import cmr

    model, tokenizer = smollm2
    with cmr.attach(model, tokenizer=tokenizer, budget=2048) as memory:
        for text in ("The violin was made in Cremona. " * 20, "The tower is made of slate. " * 20):
            ids = encode(tokenizer, text)
            finder = Remembering(model, tokenizer, memory, ids)
            assert memory.tokens <= len(ids)
            assert all(end <= len(ids) for _, end in finder.spans("What is it made of?"))
