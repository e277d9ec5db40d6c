"""From query states to the blocks that are read: searches, and what they chose."""

from cmr.retrieval.choice import Choice
from cmr.retrieval.maxsim import MaxSimRetriever
from cmr.retrieval.query import RollingQuery

__all__ = ["Choice", "MaxSimRetriever", "RollingQuery"]
