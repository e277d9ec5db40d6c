"""What steers a running memory, through public settings and methods only."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(
    __name__,
    "AdaptiveThresholdManager BackgroundOptimizer BatchProcessingOptimizer "
    "CMRPerformanceOptimizer ComputationScheduler MemoryPrefetcher",
)
