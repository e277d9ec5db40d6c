"""Questions inside everyday talk in the recall benchmark: who is asked what, and what rows say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.recall import __main__ as command
from benchmarks.recall.report import report, waiting
from benchmarks.shared import rows
from benchmarks.texts.documents import Document, Fact, Question
from benchmarks.texts.everyday import WRAPPED

FACTS = 4


def document(index: int) -> Document:
    """A document with four facts and four wordings each; nothing of its text is looked at."""
    facts = tuple(
        Fact(
            f"f{index}-{i}",
            "",
            10 * i,
            10 * i + 5,
            "price",
            "number",
            tuple(Question(f"What is {index} {i} {w}?", (f"answer {i}",)) for w in range(4)),
        )
        for i in range(FACTS)
    )
    return Document(f"s0-3000-d{index}", "", [0] * 3000, facts)


class Answering:
    """Knows the answer of every bare question, and of wrapped ones where the talk stands behind."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def ask_all(self, system: str, asked: list[tuple[Fact, Question]]) -> list[dict[str, Any]]:
        self.heard += [(system, question.text) for _, question in asked]
        found = {"rank": 1, "covered": 1.0, "recalled_tokens": 128} if system == "memory" else {}
        return [
            {"answer": question.answers[0] if question.text.startswith("What is") else "",
             "seconds": 0.1} | found
            for _, question in asked
        ]  # fmt: skip


@pytest.fixture
def details(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Answering]:
    monkeypatch.setattr(rows, "into", tmp_path)
    args = SimpleNamespace(systems=["memory", "bm25"], wrapped=True, verbose=False, seed=0)
    asker, found = Answering(), []
    for index in range(2):
        doc = document(index)
        asked = {(doc.id, fact.id): {0, 2} for fact in doc.facts}
        found += command._document(asker, doc, asked, "run", args)
    return found, asker


def test_every_question_is_asked_bare_and_wrapped(details: tuple[list[Any], Answering]) -> None:
    found, asker = details
    assert [r["system"] for r in found[:32:8]] == [
        "memory", "bm25", "memory" + WRAPPED, "bm25" + WRAPPED
    ]  # fmt: skip
    assert {system for system, _ in asker.heard} == {"memory", "bm25"}
    said = {}
    for row in found:
        said.setdefault((row["fact"], row["wording"]), {})[row["system"]] = row["question"]
    for by_system in said.values():
        assert by_system["memory"] == by_system["bm25"]
        assert by_system["memory" + WRAPPED] == by_system["bm25" + WRAPPED]
        assert by_system["memory"].rstrip("?") in by_system["memory" + WRAPPED]
        assert len(by_system["memory" + WRAPPED]) > len(by_system["memory"]) + 100


def test_documents_are_asked_in_other_talk(details: tuple[list[Any], Answering]) -> None:
    found, _ = details
    inside = [r for r in found if r["system"] == "memory" + WRAPPED]
    first = [r["question"].replace("What is 0", "What is 1") for r in inside if "f0" in r["fact"]]
    assert first != [r["question"] for r in inside if "f1" in r["fact"]]


def test_the_report_says_what_is_left_of_the_bare_answers(
    details: tuple[list[Any], Answering], capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = details
    by_name = {row["system"]: row for row in report({"run": "run"}, found, [])}
    inside = by_name["memory" + WRAPPED]
    behind = sum(
        r["question"].startswith("What is") for r in found if r["system"] == "memory" + WRAPPED
    )
    assert 0 < behind < 16 and inside["right"] == behind and inside["found_first"] == 1.0
    assert inside["of_bare"]["n"] == 16
    assert inside["of_bare"]["share"] == pytest.approx(behind / 16)
    low, high = inside["of_bare"]["interval"]
    assert low < behind / 16 < high
    assert inside["against"]["memory"]["difference"] == pytest.approx(behind / 16 - 1)
    assert "of_bare" not in by_name["memory"]
    assert f"memory, wrapped has {behind / 16:.2f}" in capsys.readouterr().out


def test_the_report_says_how_long_one_waits() -> None:
    """The first reply about a text waits for what was prepared; systems may time a few alone."""
    rows_of = [
        {"fact": f"d{doc}-f{n}", "prepare_seconds": 10.0 * doc, "first_token_seconds": seconds}
        for doc, times in ((1, (2.0, 0.5, 0.7)), (3, (4.0, 0.9, None)))
        for n, seconds in enumerate(times)
    ]
    assert waiting(rows_of) == {"first_answer_seconds": 23.0, "next_answer_seconds": 0.7}
    assert waiting([{"fact": "d1-f0", "first_token_seconds": None}]) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--systems", "kvpress", "--kept", "1.5"], "tokens, or a share below 1, expected"),
        (["--systems", "press"], "invalid choice"),
    ],
)
def test_what_a_press_keeps_is_looked_at_first(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(words)
    assert said in capsys.readouterr().err


def test_every_press_keeps_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(command, "ask_everything", given.append)
    command.main(["--systems", "kvpress", "memory", "--kept", "642", "0.5"])
    [args] = given
    assert args.systems[0] == "memory" and args.systems[1:] == list(args.pressed)
    assert len(args.pressed) == 8 and args.pressed["snapkv, 0.5 kept"] == ("snapkv", 0.5)
    command.main([])
    assert given[-1].pressed == {} and "bm25" in given[-1].systems
