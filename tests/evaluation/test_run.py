"""Every system is asked every question once, and a run that was interrupted goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr.errors import ConfigError
from cmr.evaluation import SYSTEMS, Evaluation, EvaluationError, evaluate, rows
from cmr.evaluation.run import REPLIES
from tests.evaluation.conftest import DOCUMENTS, QUESTIONS, SETTINGS


def asked(decoder: tuple[Any, Any], **options: Any) -> Evaluation:
    known: dict[str, Any] = {"settings": SETTINGS, "new_tokens": 2}
    return evaluate(*decoder, DOCUMENTS, QUESTIONS, **{**known, **options})


@pytest.fixture(scope="module")
def whole(decoder: tuple[Any, Any]) -> Evaluation:
    return asked(decoder, configurations={"one block": {"blocks": 1}})


def test_every_system_answers_every_question(whole: Evaluation) -> None:
    names = [*SYSTEMS, "one block"]
    assert [(r["system"], r["question"]) for r in whole.rows] == [
        (name, number) for name in names for number in range(len(QUESTIONS))
    ]
    for row in whole.rows:
        assert isinstance(row["reply"], str)
        assert 0 <= row["first_token_seconds"] <= row["seconds"]
        assert row["document"] == QUESTIONS[row["question"]].document
        assert row["document_tokens"] == len(DOCUMENTS[row["document"]])


def test_systems_are_shown_what_they_are_called_after(whole: Evaluation) -> None:
    by = {(row["system"], row["question"]): row for row in whole.rows}
    for number in range(len(QUESTIONS)):
        mine = by["memory", number]
        total = mine["document_tokens"]
        assert mine["shown"], "memory recalled nothing: the others were not compared"
        assert by["passages-as-text", number]["shown"] == mine["shown"]
        assert by["bm25", number]["shown_tokens"] == min(total, mine["shown_tokens"])
        assert by["full-context", number]["shown"] == [[0, total]]
        assert by["full-context", number]["found"] in (1.0, None)
        assert all(end == total for _, end in by["window", number]["shown"])
    # What stands at the document's end is in the window, what stands at its beginning is not.
    assert by["full-context", 1]["found"] == 1.0
    assert by["window", 0]["found"] == 0.0


def test_what_was_asked_before_is_not_remembered(decoder: tuple[Any, Any]) -> None:
    """The window is so small that prompts leave it, and what leaves it becomes memory."""
    alone = evaluate(
        *decoder, DOCUMENTS, QUESTIONS[1:2], systems=["memory"], settings=SETTINGS, new_tokens=40
    )
    after = asked(decoder, systems=["memory"], new_tokens=40)
    assert after.rows[1]["reply"] == alone.rows[0]["reply"]
    assert after.rows[1]["shown"] == alone.rows[0]["shown"]


def test_the_model_is_as_it_was(decoder: tuple[Any, Any], whole: Evaluation) -> None:
    model, _ = decoder
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_long_document_is_refused_by_what_cannot_take_it(decoder: tuple[Any, Any]) -> None:
    documents = {name: text * 4 for name, text in DOCUMENTS.items()}
    found = evaluate(
        *decoder, documents, QUESTIONS, systems=["full-context"], settings=SETTINGS, new_tokens=2
    )
    refused = [row["reply"] is None for row in found.rows]
    # The other document leaves room for question and reply, if little.
    assert refused == [True, True, False]
    assert "the model takes 1,024" in found.rows[0]["why"]
    [row] = found.summary()
    assert (row["asked"], row["refused"]) == (1, 2)


def test_a_second_call_goes_on_where_the_first_stopped(
    decoder: tuple[Any, Any], tmp_path: Path, whole: Evaluation
) -> None:
    def stop(done: int, total: int, doing: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    options = {"systems": ["memory", "window"], "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        asked(decoder, progress=stop, **options)
    path = tmp_path / REPLIES
    first = rows.load(path)
    assert len(first) == 4
    # The line that was being written when it was ended.
    with path.open("a") as file:
        file.write('{"key": "half')
    told: list[int] = []
    found = asked(decoder, progress=lambda done, *_: told.append(done), **options)
    assert rows.load(path)[:4] == first and len(rows.load(path)) == 6
    assert told[0] == 3 and told[-1] == 6
    replies = {(r["system"], r["question"]): r["reply"] for r in whole.rows}
    assert all(r["reply"] == replies[r["system"], r["question"]] for r in found.rows)

    again = asked(decoder, progress=lambda done, *_: told.append(done), **options)
    assert len(rows.load(path)) == 6
    assert again.rows == found.rows


@pytest.mark.parametrize(
    "change",
    [{"new_tokens": 3}, {"settings": {**SETTINGS, "blocks": 1}}, {"instructed": True}],
    ids=str,
)
def test_other_conditions_are_asked_anew(
    decoder: tuple[Any, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    options = {"systems": ["memory"], "folder": tmp_path}
    asked(decoder, **options)
    asked(decoder, **{**options, **change})
    assert len(rows.load(tmp_path / REPLIES)) == 2 * len(QUESTIONS)


def test_other_weights_are_another_model(decoder: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = decoder
    options: dict[str, Any] = {"systems": ["window"], "folder": tmp_path}
    asked(decoder, **options)
    weight = next(model.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 0.5
    try:
        asked(decoder, **options)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert len(rows.load(tmp_path / REPLIES)) == 2 * len(QUESTIONS)


def test_a_changed_answer_is_judged_anew_without_asking(
    decoder: tuple[Any, Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"systems": ["full-context"], "settings": SETTINGS, "new_tokens": 8}
    first = evaluate(*decoder, DOCUMENTS, QUESTIONS, folder=tmp_path, **options)
    said = first.rows[0]["reply"]
    questions = [replace(QUESTIONS[0], answers=(f"x{said}", "nothing")), *QUESTIONS[1:]]
    second = evaluate(*decoder, DOCUMENTS, questions, folder=tmp_path, **options)
    assert len(rows.load(tmp_path / REPLIES)) == len(QUESTIONS)
    assert second.rows[0]["expected"] == (f"x{said}", "nothing")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"systems": ["memroy"]}, "unknown system 'memroy': did you mean 'memory'"),
        ({"systems": []}, "at least one of memory"),
        ({"systems": ["passages-as-text"]}, "name memory, too"),
        ({"configurations": {"window": {}}}, "'window' is a system"),
        ({"new_tokens": 0}, "new_tokens: at least 1 expected, got 0"),
    ],
)
def test_mistakes_are_told_before_any_work(
    decoder: tuple[Any, Any], tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        asked(decoder, folder=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_settings_and_evidence_are_looked_at_first(decoder: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="block_sizes"):
        asked(decoder, settings={"block_sizes": 3})
    with pytest.raises(EvaluationError, match="'Nobody' does not stand in harbour"):
        evaluate(*decoder, DOCUMENTS, [replace(QUESTIONS[0], evidence=("Nobody",))])
    with pytest.raises(EvaluationError, match="about 'gone', which is not among"):
        evaluate(*decoder, DOCUMENTS, [replace(QUESTIONS[0], document="gone")])


def test_a_row_that_is_none_is_named(decoder: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / REPLIES).write_text("{}x\n")
    with pytest.raises(EvaluationError, match=r"replies.jsonl:1: a row expected"):
        asked(decoder, folder=tmp_path)
