"""The bounded store: whole blocks in preallocated tensors, sessions as a column."""

from cmr.memory.allocation import LayerShape, Lower
from cmr.memory.batch import BlockBatch, LayerSource
from cmr.memory.block_store import BlockStore
from cmr.memory.entry import MemoryEntry
from cmr.memory.keeper import Keeper, Policy
from cmr.memory.sessions import SessionInfo, SessionTable

__all__ = [
    "BlockBatch",
    "BlockStore",
    "Keeper",
    "LayerShape",
    "LayerSource",
    "Lower",
    "MemoryEntry",
    "Policy",
    "SessionInfo",
    "SessionTable",
]
