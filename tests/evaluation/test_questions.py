"""Files of questions and documents: what is read, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmr.evaluation import EvaluationError, Question, find_documents, read_documents, read_questions

GOOD = {"question": "Who?", "answers": ["Ada"], "document": "a.txt"}


def asked(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "questions.jsonl"
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(text))
    return path


def test_a_line_is_a_question(tmp_path: Path) -> None:
    more = {"question": "Which?", "parts": ["x", "y"], "document": "b.txt", "kind": "many"}
    path = asked(tmp_path, GOOD, "", {**more, "evidence": "x and y"})
    assert read_questions(path, ["a.txt", "b.txt"]) == [
        Question("Who?", "a.txt", ("Ada",)),
        Question("Which?", "b.txt", parts=("x", "y"), evidence=("x and y",), kind="many"),
    ]


def test_the_only_document_needs_no_name(tmp_path: Path) -> None:
    path = asked(tmp_path, {"question": "Who?", "answers": "Ada"})
    assert read_questions(path, ["a.txt"])[0].document == "a.txt"
    with pytest.raises(EvaluationError, match=r"jsonl:1: document: the name of one of 2 .*missing"):
        read_questions(path, ["a.txt", "b.txt"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON: .* at column 2"),
        ("[1]", "an object like .* expected"),
        ({**GOOD, "answer": "x"}, "unknown field 'answer': did you mean 'answers'"),
        ({"answers": ["Ada"]}, "question: missing"),
        ({**GOOD, "question": " "}, "question: a text expected"),
        ({**GOOD, "question": 3}, "question: a text expected, got 3"),
        ({**GOOD, "answers": []}, "either answers or parts expected"),
        ({**GOOD, "parts": ["x"]}, "either answers or parts expected"),
        ({**GOOD, "answers": ["?!"]}, "answers: a text with words expected, got '\\?!'"),
        ({**GOOD, "answers": [17]}, "answers: a list of texts expected, got \\[17\\]"),
        ({**GOOD, "document": "a.tx"}, "document: .* got 'a.tx': did you mean 'a.txt'"),
    ],
)
def test_a_mistake_names_file_and_line(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(EvaluationError, match=f"questions.jsonl:2: {said}"):
        read_questions(asked(tmp_path, GOOD, line), ["a.txt", "b.txt"])


def test_a_file_without_questions_is_none(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the file has none"):
        read_questions(asked(tmp_path, ""), ["a.txt"])
    with pytest.raises(EvaluationError, match=r"gone.jsonl: No such file"):
        read_questions(tmp_path / "gone.jsonl", ["a.txt"])


def test_documents_are_files_by_their_path(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.md", ".git/c", "deep/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"Text of {name}.")
    files = find_documents(tmp_path)
    assert list(files) == ["a.txt", "deep/b.md"]
    assert read_documents(files, ["deep/b.md"]) == {"deep/b.md": "Text of deep/b.md."}
    assert list(find_documents(tmp_path / "a.txt")) == ["a.txt"]
    with pytest.raises(EvaluationError, match="a file or a folder with documents"):
        find_documents(tmp_path / "gone")
    (tmp_path / "deep" / "none").mkdir()
    with pytest.raises(EvaluationError, match="the folder has no file"):
        find_documents(tmp_path / "deep" / "none")


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe", "not UTF-8"), (b" \n-", "no words")])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(EvaluationError, match=rf"a\.txt: .*{said}"):
        read_documents(find_documents(tmp_path), ["a.txt"])
