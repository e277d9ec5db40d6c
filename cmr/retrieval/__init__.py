"""From query states to the blocks that are read: search, choice, block table."""

from cmr.retrieval.choice import Choice
from cmr.retrieval.maxsim import MaxSimRetriever
from cmr.retrieval.table import block_table

__all__ = ["Choice", "MaxSimRetriever", "block_table"]
