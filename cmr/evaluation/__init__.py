"""Evaluation: a memory, and what else answers questions about a text, on one's own documents."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmr.errors import EvaluationError as EvaluationError
    from cmr.evaluation.documents import find_documents as find_documents
    from cmr.evaluation.documents import read_documents as read_documents
    from cmr.evaluation.evaluation import Evaluation as Evaluation
    from cmr.evaluation.judging import judge as judge
    from cmr.evaluation.questions import Question as Question
    from cmr.evaluation.questions import read_questions as read_questions
    from cmr.evaluation.registry import SYSTEMS as SYSTEMS
    from cmr.evaluation.registry import register_system as register_system
    from cmr.evaluation.run import evaluate as evaluate
    from cmr.evaluation.tester import Dataset as Dataset
    from cmr.evaluation.tester import DatasetTester as DatasetTester
    from cmr.evaluation.tester import compare_configurations as compare_configurations

_HOME_OF = {
    "EvaluationError": "cmr.errors",
    "Dataset": "cmr.evaluation.tester",
    "DatasetTester": "cmr.evaluation.tester",
    "Evaluation": "cmr.evaluation.evaluation",
    "Question": "cmr.evaluation.questions",
    "SYSTEMS": "cmr.evaluation.registry",
    "compare_configurations": "cmr.evaluation.tester",
    "evaluate": "cmr.evaluation.run",
    "find_documents": "cmr.evaluation.documents",
    "judge": "cmr.evaluation.judging",
    "read_documents": "cmr.evaluation.documents",
    "read_questions": "cmr.evaluation.questions",
    "register_system": "cmr.evaluation.registry",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: most need transformers."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cmr.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
