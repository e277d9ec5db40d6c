"""Several data sets, and several configurations of a memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmr.errors import EvaluationError
from cmr.evaluation.documents import find_documents, read_documents
from cmr.evaluation.evaluation import Evaluation
from cmr.evaluation.questions import Question, read_questions
from cmr.evaluation.run import evaluate


@dataclass(frozen=True)
class Dataset:
    """Texts by name, and the questions about them."""

    documents: Mapping[str, str]
    questions: Sequence[Question]

    @classmethod
    def read(cls, documents: str | Path, questions: str | Path) -> Dataset:
        """Of a folder or file with documents and a file of questions; see `read_questions`.

        Raises:
            EvaluationError: something cannot be read; the message names the file and the line.
        """
        files = find_documents(Path(documents))
        asked = read_questions(Path(questions), files)
        return cls(read_documents(files, (question.document for question in asked)), asked)


class DatasetTester:
    """Evaluates one model on data sets.

    Args:
        model: a decoder without a memory.
        tokenizer: its tokenizer.
        folder: where each data set has a folder of its own by its name with replies, rows and a
            report; a test that was interrupted goes on from there. None: nothing is written.
        **options: as `evaluate` takes them.
    """

    def __init__(
        self, model: Any, tokenizer: Any, folder: str | Path | None = None, **options: Any
    ) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.folder = None if folder is None else Path(folder)

    def test(self, datasets: Mapping[str, Dataset]) -> dict[str, Evaluation]:
        """What was found on each data set, by its name.

        Raises:
            EvaluationError: see `evaluate`; with a folder also where a name is none of a folder.
        """
        # All names first: the last one may come after hours.
        for name in datasets:
            if self.folder is not None and Path(name).name != name:
                raise EvaluationError(f"a name that a folder can have expected, got {name!r}")
        return {name: self._test(name, dataset) for name, dataset in datasets.items()}

    def _test(self, name: str, dataset: Dataset) -> Evaluation:
        place = None if self.folder is None else self.folder / name
        found = evaluate(
            self.model, self.tokenizer, dataset.documents, dataset.questions,
            folder=place, **self.options,
        )  # fmt: skip
        if place is not None:
            found.write(place)
        return found


def compare_configurations(
    model: Any,
    tokenizer: Any,
    dataset: Dataset,
    configurations: Mapping[str, Mapping[str, Any]],
    **options: Any,
) -> Evaluation:
    """Memories with different settings on the same questions, each beside the first of them.

    Args:
        model: a decoder without a memory.
        tokenizer: its tokenizer.
        dataset: what is asked.
        configurations: settings for `cmr.attach` by the name that a memory is shown by.
        **options: as `evaluate` takes them, `settings` for what all have in common.

    Raises:
        EvaluationError, ConfigError: see `evaluate`.
    """
    # No other system: they do not depend on these settings.
    return evaluate(
        model, tokenizer, dataset.documents, dataset.questions,
        systems=(), configurations=configurations, **options,
    )  # fmt: skip
