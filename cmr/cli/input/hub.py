"""Whether the hub that a model's name is of can be reached, which is told at once."""

from __future__ import annotations

import functools
import urllib.error
import urllib.request
from pathlib import Path

from cmr.cli.errors import UsageError

PATIENCE = 5.0
"""Seconds in which a hub must answer at all."""


@functools.cache
def only_here(name: str) -> bool:
    """Whether a model is to be taken from this machine alone, as no hub answers.

    Raises `UsageError` where it is not here either: transformers would try again for minutes.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if Path(name).is_dir() or constants.HF_HUB_OFFLINE:
        return False
    hub = constants.ENDPOINT
    try:
        asked = urllib.request.Request(f"{hub}/api/models/{name}", method="HEAD")
        urllib.request.urlopen(asked, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # it answers; what it says of the name transformers tells
    except OSError as error:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        reason = getattr(error, "reason", error)
        raise UsageError(f"--model {name}: no such folder, and {hub} cannot be reached "
                         f"({getattr(reason, 'strerror', None) or reason}); give the model's "
                         "folder") from None  # fmt: skip
    return False
