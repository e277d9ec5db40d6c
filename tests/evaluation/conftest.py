"""A tiny random decoder, documents and questions: what is said is nonsense, not what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from cmr.demo.conversion import quiet
from cmr.evaluation import Question
from tests.docs import tiny

DOCUMENTS = {
    "harbour.txt": "The village clock was repaired by Marta Lindqvist. "
    + "Rain fell on the harbour and the boats came home early that day. " * 6
    + "The night train leaves from platform 17.",
    "garden.txt": "The baker puts lavender in the bread. " * 6,
}
QUESTIONS = (
    Question(
        "Who repaired the clock?",
        "harbour.txt",
        ("Lindqvist",),
        evidence=("The village clock was repaired by Marta Lindqvist.",),
        kind="who",
    ),
    Question("Which platform?", "harbour.txt", ("17",), evidence=("platform 17",), kind="which"),
    Question("What is in the bread?", "garden.txt", parts=("lavender", "bread"), kind="which"),
)
SETTINGS: dict[str, Any] = {"window": 64, "budget": 2_048, "threshold": 0.0}
"""A random model is certain of nothing: without a threshold it recalls all the same."""


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model and its tokenizer; a token is a byte."""
    folder = tiny.save("llama", Path(tmp_path_factory.mktemp("models")) / "tiny")
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)
