"""The settings of what steers a running memory, for `cmr.CMRPerformanceOptimizer`."""

from __future__ import annotations

from dataclasses import dataclass

from cmr.config import checks as check


@dataclass(frozen=True)
class OptimizationConfig(check.Checked):
    """Which helpers may steer a running memory; each True or False."""

    enable_adaptive_thresholds: bool = check.setting(False, check.flag)
    enable_batch_optimization: bool = check.setting(False, check.flag)
    enable_prefetching: bool = check.setting(False, check.flag)
    enable_background_optimization: bool = check.setting(False, check.flag)
