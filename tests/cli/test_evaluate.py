"""`cmr evaluate` on a tiny decoder: what it shows and writes, and what it refuses at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmr.cli.evaluating import run as evaluating
from cmr.evaluation.registry import SYSTEMS
from tests.cli.saved import CITY, OTHER

ONE = {"question": "What is the secret?", "answers": ["lavender"], "document": "a.txt"}
SET = ("--set", "window=64", "budget=2048", "threshold=0", "--max-new-tokens", "2")


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, ...]:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(CITY + OTHER * 5)
    (folder / "b.txt").write_text(OTHER * 7)
    lines = (json.dumps(one) for one in (ONE, {**ONE, "document": "b.txt"}))
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    return ("--documents", str(folder), "--questions", str(tmp_path / "q.jsonl"))


def test_it_asks_shows_and_writes_and_goes_on(cmr, given, tmp_path):
    out = tmp_path / "out"
    words = ("evaluate", *given, "--out", out, *SET, "--systems", "memory", "window", "bm25")
    result = cmr(*words)
    assert result.code == 0, result.err
    for name in ("memory", "window", "bm25", "first, s", "2 questions", "report.html"):
        assert name in result.out.replace("\n", ""), name
    assert "full-context" not in result.out
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(files) == {"answers.jsonl", "replies.jsonl", "report.html", "summary.jsonl"}
    rows = [json.loads(line) for line in files["answers.jsonl"].splitlines()]
    assert [row["system"] for row in rows] == ["memory"] * 2 + ["window"] * 2 + ["bm25"] * 2
    assert all(row["settings"]["window"] == 64 for row in rows)

    again = cmr(*words)
    assert again.code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files


def test_the_first_questions_alone(cmr, given, tmp_path):
    words = ("evaluate", *given, "--out", tmp_path / "out", "--limit", 1, *SET)
    assert cmr(*words).code == 0
    rows = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(row)["system"] for row in rows] == list(SYSTEMS)


def test_quick_brings_its_own_questions(cmr, given, tmp_path, monkeypatch):
    def few(tokenizer, seed):
        from cmr.evaluation import Question

        return {"made": f"The secret of {seed} is lavender. "}, [Question("?", "made", ("17",))]

    monkeypatch.setattr("cmr.evaluation.quick.quick", few)
    result = cmr("evaluate", "--quick", "--seed", 5, "--out", tmp_path / "out", *SET)
    assert result.code == 0, result.err
    rows = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(row)["system"] for row in rows] == list(SYSTEMS[:-1])
    assert cmr("evaluate", "--quick", *given).code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "either --documents and --questions expected, or --quick"),
        (("--documents", "x"), "--questions: missing"),
        (("given", "--systems", "memory", "windw"), "unknown system 'windw': did you mean"),
        (("given", "--systems", "passages-as-text"), "name memory, too"),
        (("given", "--set", "blocks=2", "frogs=1"), "--set: unknown setting frogs"),
        (
            ("given", "--kept", "1.5"),
            "kept: a number of tokens, or a share between",
        ),
        (("given", "--systems", "kvpress"), "pip install kvpress"),
        (("given", "--judge", "best"), "--judge: one of contains, exact, f1 expected"),
        (("given", "--out", "q.jsonl"), "is a file, a folder is expected"),
        (("--documents", "gone", "--questions", "q.jsonl"), "gone: a file or a folder with"),
        (("--documents", "texts", "--questions", "texts/b.txt"), "b.txt:1: not JSON"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(
    cmr, given, tmp_path, monkeypatch, words, said
):
    def load(name):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(evaluating, "load_model", load)
    monkeypatch.setenv("CMR_KVPRESS_PYTHON", str(tmp_path / "python"))
    monkeypatch.chdir(tmp_path)
    words = [part for word in words for part in (given if word == "given" else (word,))]
    result = cmr("evaluate", *words)
    assert result.code == 2 and said in result.err, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert not (tmp_path / "cmr-evaluation").exists()


def test_evidence_that_is_not_there_names_the_question(cmr, given, tmp_path):
    line = json.dumps({**ONE, "evidence": "in the south tower"})
    (tmp_path / "q.jsonl").write_text(line)
    result = cmr("evaluate", *given, "--out", tmp_path / "out")
    assert result.code == 2
    assert "its evidence 'in the south tower' does not stand in a.txt" in result.err


def test_the_table_fits_a_narrow_terminal(cmr, given, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = cmr("evaluate", *given, "--out", tmp_path / "out", *SET)
    [head] = [line for line in result.out.splitlines() if "to memory" in line]
    assert "next, s" in head and max(map(len, result.out.splitlines())) <= 80
