"""What watches a running memory and never steers it."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(__name__, "CMRPerformanceMonitor")
