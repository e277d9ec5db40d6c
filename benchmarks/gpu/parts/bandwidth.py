"""The bandwidth of the device's memory, which all floors refer to."""

from __future__ import annotations

from typing import Any

from benchmarks.compiled.roofline import DEVICES, Device
from benchmarks.gpu.log import Job, Run
from benchmarks.ops import bandwidth

TINY_MIB = 16


def begin(run: Run) -> None:
    """A sum, a dot product and a copy over as much memory as there is room for."""
    run.do([Job("memory", lambda: _measured(run))])


def mib(run: Run) -> int:
    """MiB of a pass."""
    return TINY_MIB if run.tiny else bandwidth.most_mib(run.device.kind)


def peak(run: Run) -> float:
    """GB/s of the best pass."""
    return bandwidth.peak(run.device.kind, mib(run))["peak"]


def known(name: str) -> Device | None:
    """The GPU's data sheet, if it is among those of the model of the hardware."""
    words = name.replace("-", " ").split()
    return next((device for device in DEVICES if device.name in words), None)


def _measured(run: Run) -> dict[str, Any]:
    size = mib(run)
    found = bandwidth.peak(run.device.kind, size)
    sheet = known(run.device.name()) if run.device.kind == "cuda" else None
    share = None if sheet is None else found["peak"] / (1e3 * sheet.bandwidth)
    of = "" if share is None else f", {share:.0%} of the data sheet's"
    return {
        **{f"{name}_gb_s": round(value, 2) for name, value in found.items()},
        "mib": size,
        "enough": size >= bandwidth.ENOUGH_MIB,
        "share_of_data_sheet": share,
        "said": f"{found['peak']:.1f} GB/s over {size} MiB{of}",
    }
