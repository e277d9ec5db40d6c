"""The bounded store: a preallocated ring of whole blocks, sessions as a column."""

from cmr.memory.batch import BlockBatch, LayerSource, Lower
from cmr.memory.block_store import RingBuffer
from cmr.memory.entry import MemoryEntry
from cmr.memory.keeper import Policy
from cmr.memory.layer_tensors import LayerShape
from cmr.memory.sessions import SessionInfo, SessionTable

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
