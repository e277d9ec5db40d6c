"""The small real model and the real text that the demo, the command line and the tests use."""

from cmr.demo.conversion import MissingDemoDependencyError
from cmr.demo.smollm2 import load_smollm2
from cmr.demo.text import Document, Question, demo_document

__all__ = ["Document", "MissingDemoDependencyError", "Question", "demo_document", "load_smollm2"]
