"""Where the library keeps what is prepared once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$CMR_CACHE` if set, else `$XDG_CACHE_HOME/cmr`, else `~/.cache/cmr`."""
    own = os.environ.get("CMR_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cmr"
