"""What is stored of a token, where the specification has it."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(__name__, "MemoryEntry")
