"""A monitor's measures as lines of JSON, for whatever gathers logs."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TextIO

from cmr.monitoring.monitor import CMRPerformanceMonitor


def write_line(monitor: CMRPerformanceMonitor, out: TextIO) -> None:
    """Write what `metrics()` has now as one line, with `time` and what was left out, and flush.

    Args:
        monitor: of the model.
        out: an open text file or stream.
    """
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        **monitor.metrics(),
        "left_out_by_error": dict(monitor.left_out),
    }
    # In one piece: several processes may write to one file.
    out.write(json.dumps(line, allow_nan=False) + "\n")
    out.flush()
