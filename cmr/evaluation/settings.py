"""Settings for `cmr.attach` as words of a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cmr.config import CMRConfig


def overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` words as settings for `attach`; values are JSON, else text.

    Raises:
        ValueError: a word without `=`, a setting that is not known, or a value out of its range.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ValueError(f"a setting like blocks=2 expected, got {pair!r}")
        try:
            out[name] = json.loads(value)
        except json.JSONDecodeError:
            out[name] = value
    CMRConfig().with_overrides(**out)
    return out
