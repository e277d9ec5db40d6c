"""What a memory holds, as tests look at it."""

from __future__ import annotations

import cmr


def told(memory: cmr.Memory, session: str) -> list[int]:
    """Token ids of a session, in the order of its text."""
    return [token for block in memory.inspect(session) for token in block.token_ids]
