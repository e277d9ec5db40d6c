"""Several data sets by one tester, several configurations on one data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cmr import experiments
from cmr.evaluation import Dataset, DatasetTester, EvaluationError, compare_configurations
from tests.evaluation.conftest import DOCUMENTS, QUESTIONS, SETTINGS

DATA = Dataset(DOCUMENTS, QUESTIONS)
OPTIONS: dict[str, Any] = {"settings": SETTINGS, "new_tokens": 2}


def test_each_data_set_has_its_rows_and_its_folder(
    decoder: tuple[Any, Any], tmp_path: Path
) -> None:
    tester = DatasetTester(*decoder, tmp_path, systems=["memory", "window"], **OPTIONS)
    other = Dataset(DOCUMENTS, QUESTIONS[2:])
    found = tester.test({"all": DATA, "garden": other})
    assert {name: len(one.rows) for name, one in found.items()} == {"all": 6, "garden": 2}
    assert {path.name for path in tmp_path.iterdir()} == {"all", "garden"}
    for name in found:
        lines = (tmp_path / name / "answers.jsonl").read_text().splitlines()
        assert len(lines) == len(found[name].rows)
        assert (tmp_path / name / "report.html").is_file()
    with pytest.raises(EvaluationError, match="got 'a/b'"):
        tester.test({"a/b": other})


def test_configurations_stand_beside_the_first(decoder: tuple[Any, Any]) -> None:
    both = {"mild": {"memory_weight": 0.0}, "strong": {"memory_weight": 0.88}}
    found = compare_configurations(*decoder, DATA, both, **OPTIONS)
    assert list(dict.fromkeys(row["system"] for row in found.rows)) == ["mild", "strong"]
    for row in found.rows:
        assert row["settings"] == {**SETTINGS, **both[row["system"]]}
    assert found.beside == "mild"
    mild, strong = found.summary()
    assert mild["difference"] is None and strong["difference"]["to"] == "mild"
    assert "Difference to mild" in found.report()


def test_a_data_set_is_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada is the word.")
    line = {"question": "Who?", "answers": "Ada"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    found = Dataset.read(tmp_path / "a.txt", tmp_path / "q.jsonl")
    assert found.documents == {"a.txt": "Ada is the word."}
    assert [question.text for question in found.questions] == ["Who?"]


def test_the_specifications_module_has_the_names_and_is_light() -> None:
    assert experiments.DatasetTester is DatasetTester
    with pytest.raises(AttributeError, match="no attribute 'DatasetTesters'"):
        experiments.DatasetTesters  # noqa: B018
    code = "import sys, cmr.experiments as e; e.Question; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
