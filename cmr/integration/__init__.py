"""Attaching a memory to a transformers decoder."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(
    __name__,
    "FullCMRModel HookManager IntegratedCMRModel MistralCMRModel",
)
