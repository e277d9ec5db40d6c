"""Every example, with fewer questions than it asks by itself: what it prints is what is claimed."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.docs.blocks import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(smollm2, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example as Python does when it runs one; the model is the tests' own."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(smollm2[1], "padding_side", smollm2[1].padding_side)
    names = [path.stem for path in EXAMPLES.glob("*.py")]

    def get(name: str) -> ModuleType:
        monkeypatch.setattr(importlib.import_module("common"), "load_smollm2", lambda: smollm2)
        return importlib.import_module(name)

    yield get
    for name in names:
        sys.modules.pop(name, None)


def test_the_support_assistant_knows_each_customer_and_no_other(example) -> None:
    found = example("support_assistant").main(["--customer", "ben", "--customer", "carl"])
    ((without, device),) = found["ben"]
    assert "Lumo 5" in device and "Lumo 5" not in without
    ((without, device),) = found["carl"]  # a new customer: no memory at all
    assert device == without


def test_the_writing_copilot_knows_tone_and_deadline(example, capsys) -> None:
    copilot = example("writing_copilot")
    _, tone, deadline, _ = copilot.QUESTIONS
    answers = copilot.main(["--question", tone, "--question", deadline])
    for (without, remembered), fact in zip(
        answers, ("concise and friendly", "14th of October"), strict=True
    ):
        assert fact in remembered and fact not in without
    assert "tokens 256-288: deadline of the project" in capsys.readouterr().out


def test_the_banking_helper_knows_the_payday_and_no_card(example, capsys) -> None:
    helper = example("banking_helper")
    found = helper.main([])
    for question, fact in (
        (helper.PAYDAY, "every other Friday"),
        (helper.ACCOUNT, "7741"),
        (helper.TRANSFER, "250 euros"),
    ):
        without, remembered = found[question]
        assert fact in remembered and fact not in without
    assert "7741" not in "".join(found["forgotten"])
    printed = capsys.readouterr().out
    assert "stored of the card's number: []" in printed
    assert "sessions in memory: ['dora', 'guest']" in printed
    assert "loaded again: ['dora']" in printed


def test_the_long_document_is_answered_from(example) -> None:
    asked = (
        ("What is the access code of the observatory archive?", "48213"),
        (
            "From which platform does the night train to Vexholm leave?",
            "platform 17",
        ),
    )
    arguments = [word for question, _ in asked for word in ("--question", question)]
    found = example("book_qa").main(["--tokens", "2000", "--window", "256", *arguments])
    for answer, (_, fact) in zip(found, asked, strict=True):
        assert fact in answer["memory"] and fact not in answer["without"]
        assert fact in answer["passages"][0].text


def test_a_document_needs_a_question(example) -> None:
    with pytest.raises(SystemExit):
        example("book_qa").main(["--document", "book.txt"])


def test_the_service_answers_each_user_from_its_own_memory(example) -> None:
    service = example("batch_service")
    found = service.main(["--users", "2", "--requests", "4", "--batch", "2"])
    assert sorted((user, kind) for user, kind, _ in found["memory"]) == [
        (0, "day"),
        (0, "shelf"),
        (1, "day"),
        (1, "shelf"),
    ]
    for user, kind, answer in found["memory"]:
        assert service.facts(user)[kind] in answer
        assert service.facts(1 - user)[kind] not in answer
    assert not any(service.facts(user)[kind] in text for user, kind, text in found["without"])


def test_a_batch_never_holds_a_user_twice(example) -> None:
    service = example("batch_service")
    waiting = service.deque([(0, "shelf"), (0, "day"), (1, "shelf"), (2, "day")])
    assert service.next_batch(waiting, 2) == [(0, "shelf"), (1, "shelf")]
    assert list(waiting) == [(0, "day"), (2, "day")]


def test_every_example_is_listed_and_helps(example, capsys) -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in sorted(EXAMPLES.glob("*.py")):
        if path.stem == "common":
            continue
        assert f"python examples/{path.name}" in readme
        module = example(path.stem)
        with pytest.raises(SystemExit) as ended:
            module.main(["--help"])
        assert ended.value.code == 0
        assert (module.__doc__ or "").splitlines()[0][:40] in capsys.readouterr().out
