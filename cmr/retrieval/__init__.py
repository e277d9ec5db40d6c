"""From query states to the blocks that are read: searches, and what they chose."""

from cmr.retrieval.ask import Ask, Scored, Searched, Strategy
from cmr.retrieval.calibration import Calibration
from cmr.retrieval.choice import Choice
from cmr.retrieval.retriever import Retriever
from cmr.retrieval.rolling_query import RollingQuery
from cmr.retrieval.vocabulary import Vocabulary

__all__ = [
    "Ask",
    "Calibration",
    "Choice",
    "Retriever",
    "RollingQuery",
    "Scored",
    "Searched",
    "Strategy",
    "Vocabulary",
]
