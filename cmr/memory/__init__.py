"""The bounded store: a preallocated ring of whole blocks, sessions as a column."""

from cmr.memory.batch import BlockBatch, LayerSource, Lower
from cmr.memory.entry import MemoryEntry
from cmr.memory.keeper import Policy
from cmr.memory.ring import RingBuffer
from cmr.memory.sessions import SessionInfo, SessionTable
from cmr.memory.stores import LayerShape

__all__ = [
    "BlockBatch",
    "LayerShape",
    "LayerSource",
    "Lower",
    "MemoryEntry",
    "Policy",
    "RingBuffer",
    "SessionInfo",
    "SessionTable",
]
