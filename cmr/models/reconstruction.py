"""What is made of what was found, where the specification has it."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(
    __name__,
    "ContextBlender LayeredStateReconstructor ReconstructionIntegrator",
)
