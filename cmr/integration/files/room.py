"""What a memory would take before it is made, held against what it may take."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import torch

from cmr.config import CMRConfig
from cmr.config import checks as check
from cmr.config.topics import size
from cmr.errors import ConfigError
from cmr.integration.calibration.files import calibration_for
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.footprint import DISK, footprint
from cmr.integration.layout import plan_layout


def byte_limit(max_bytes: int | str | None) -> int | None:
    """`max_bytes` as a number; ConfigError for what is neither one nor a size."""
    if max_bytes is None:
        return None
    if not isinstance(max_bytes, str):
        return check.integer("max_bytes", max_bytes, 1)
    try:
        return size(max_bytes)
    except ValueError as error:
        raise ConfigError(f"max_bytes: {error}") from None


def require_room(adapter: ModelAdapter, config: CMRConfig, limit: int | None, path: object) -> None:
    """Raises ConfigError where the budgets of `path` take more than `limit` bytes.

    None: more than is free where each tier lies.
    """
    layout = plan_layout(adapter, config, calibration_for(adapter, config.retrieval))
    tiers = footprint(layout, config.memory.block_size, adapter.device(layout.index_layer))
    wanted = sum((tier.places for tier in tiers), Counter[str]())
    bounds = [("in all", wanted.total(), limit, "max_bytes")]
    if limit is None:
        bounds = [
            (where, taken, _free(where, config.memory.long_term_folder), "what is free there")
            for where, taken in wanted.items()
        ]
    for where, taken, most, why in bounds:
        if most is not None and taken > most:
            raise ConfigError(
                f"budget: the budgets of {path} take {taken:,} bytes {where}, at most {most:,} "
                f"({why}) expected: give a smaller budget, working_budget or long_term_budget, or "
                "another max_bytes"
            )


def _free(where: str, folder: str | None) -> int | None:
    """Bytes that are free on a device or disk; None where that cannot be known."""
    if where == DISK:
        place = folder or tempfile.gettempdir()
        return shutil.disk_usage(place).free if os.path.isdir(place) else None
    device = torch.device(where)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _host_free() if device.type == "cpu" else None


def _host_free() -> int:
    """Bytes of memory that this process can still have."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    about = _numbers("/proc/meminfo")
    if "MemAvailable:" in about:
        found.append((about["MemAvailable:"] + about.get("SwapFree:", 0)) << 10)
    # Of the container, and of the process.
    found += list(_numbers("/sys/fs/cgroup/memory.max").values())
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            taken = _numbers("/proc/self/status").get("VmSize:", 0) << 10
            found.append(max(most - taken, 0))
    except ImportError:  # not a POSIX system
        pass
    return min(found)


def _numbers(path: str) -> dict[str, int]:
    """The numbers of a file of the system's, by the word in front of each; none without it."""
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except OSError:
        return {}
    return {
        words[0] if len(words) > 1 else "": int(words[min(1, len(words) - 1)])
        for words in lines
        if words and words[min(1, len(words) - 1)].isdecimal()
    }
