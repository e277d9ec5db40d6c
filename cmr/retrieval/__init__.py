"""From query states to the blocks that are read: searches, and what they chose."""

from cmr.retrieval.ask import Ask, Scored, Searched, Strategy
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.choice import Choice
from cmr.retrieval.maxsim import MaxSimRetriever
from cmr.retrieval.query import RollingQuery
from cmr.retrieval.retriever import Retriever

__all__ = [
    "Ask",
    "Calibration",
    "Choice",
    "MaxSimRetriever",
    "Retriever",
    "RollingQuery",
    "Scored",
    "Searched",
    "Strategy",
]
