"""The bounded store: a preallocated ring of whole blocks, sessions as a column."""

from cmr.memory.entry import MemoryEntry
from cmr.memory.ring import BlockBatch, LayerShape, LayerSource, RingBuffer
from cmr.memory.sessions import SessionTable

__all__ = ["BlockBatch", "LayerShape", "LayerSource", "MemoryEntry", "RingBuffer", "SessionTable"]
