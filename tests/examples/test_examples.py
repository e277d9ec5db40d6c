"""Every example, with fewer questions than it asks by itself: what it prints is what is claimed."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

import cmr
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


def both_steps(module: ModuleType, folder: Path, *more: str) -> list[Any]:
    """What an assistant answers from the folder that it has learnt into."""
    module.main(["--step", "learn", "--folder", str(folder)])
    return module.main(["--step", "ask", "--folder", str(folder), *more])


def right(found: list[Any]) -> list[tuple[bool, bool]]:
    """Of each request, whether it was answered without memory and with it."""
    return [
        (each.request.right(each.without), each.request.right(each.remembered)) for each in found
    ]


def test_the_support_assistant_knows_each_customer_and_no_other(example, tmp_path: Path) -> None:
    found = both_steps(example("support_assistant"), tmp_path / "memory", "--only", "plan")
    assert [each.request.session for each in found] == ["anna", "ben"]
    assert right(found) == [(False, True)] * 2
    assert "Night Owl" not in found[0].remembered and "Family" not in found[1].remembered


def test_the_writing_copilot_knows_the_name_and_the_budget(
    example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = both_steps(example("writing_copilot"), tmp_path / "memory", "--only", "the pr")
    assert [each.request.facts for each in found] == [("Falcon",), ("8500",)]
    assert right(found) == [(False, True)] * 2
    printed = capsys.readouterr().out
    assert "deadline of the project" in printed
    assert "right with memory: 2 of 2, without: 0" in printed


def test_the_banking_helper_in_its_two_processes(
    example, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = example("banking_helper")
    steps, found = [], []

    def run(command: list[str], check: bool) -> None:
        assert check and command[0] == sys.executable and Path(command[1]).samefile(helper.__file__)
        steps.append(command[command.index("--step") + 1])
        found.extend(helper.main(command[2:]))

    monkeypatch.setattr(subprocess, "run", run)
    folder = tmp_path / "memory"
    assert helper.main(["--folder", str(folder), "--only", "schedule"]) == []
    assert steps == ["learn", "ask"]
    assert right(found) == [(False, True)] * 2
    printed = capsys.readouterr().out
    assert "stored of the card's number: []" in printed
    assert "tokens of dora, guest" in printed and "sessions in the folder: ['dora']" in printed
    model, tokenizer = example("common").load()
    with cmr.load(folder, model, tokenizer=tokenizer) as memory:
        left = "".join(block.text for block in memory.inspect("dora"))
    assert "Good morning" in left and "7741" not in left


def test_a_request_that_fails_is_told(example, capsys: pytest.CaptureFixture[str]) -> None:
    assistant = example("assistant")
    request = assistant.Request("anna", "which plan am I on?", "Your plan is", ("Family Plus",))
    assert request.right("Your plan is family plus.") and not request.right("Your plan is Family.")
    found = []

    def answer(*_: Any, begins: str) -> tuple[str, str]:
        found.append(begins)
        return "Your plan is Family Plus", "I do not know"

    args = assistant.arguments("", ["--free"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assistant, "both", answer)
        assistant.ask(None, None, MagicMock(), [request], args)
    assert found == [""]
    printed = capsys.readouterr().out
    assert "right with memory: 0 of 1, without: 1" in printed
    assert "failed with memory: which plan am I on?" in printed


def test_a_step_alone_needs_a_folder(example) -> None:
    with pytest.raises(SystemExit):
        example("assistant").arguments("", ["--step", "ask"])


@pytest.mark.parametrize("name", ["support_assistant", "writing_copilot", "banking_helper"])
def test_no_request_and_no_beginning_gives_its_answer_away(example, name: str) -> None:
    for request in example(name).REQUESTS:
        assert not any(fact in request.text + request.begins for fact in request.facts)


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


def test_the_whole_model_answers_from_what_passed(
    example, capsys: pytest.CaptureFixture[str]
) -> None:
    found = example("demo_day8_integration").main(["--tokens", "1500", "--questions", "2"])
    for answer in found:
        assert answer["question"].answered_by(answer["memory"])
        assert not answer["question"].answered_by(answer["without"])
    printed = capsys.readouterr().out
    assert "'multi_criteria': 8" in printed and "buffer_bytes" in printed


def test_a_mistral_remembers_and_is_itself_again(
    example, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = example("demo_mistral_integration").main([])
    assert len(seen) == 3 and all(seen.values())
    assert capsys.readouterr().out.count("yes") == 3
    with pytest.raises(SystemExit):
        example("demo_mistral_integration").main(["--model", "nowhere"])


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
        if path.stem in ("common", "assistant"):
            continue
        assert f"python examples/{path.name}" in readme
        module = example(path.stem)
        with pytest.raises(SystemExit) as ended:
            module.main(["--help"])
        assert ended.value.code == 0
        assert (module.__doc__ or "").splitlines()[0][:40] in capsys.readouterr().out
