"""Stored states by layer, where the specification has them."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(__name__, "LayeredMemoryBuffer")
