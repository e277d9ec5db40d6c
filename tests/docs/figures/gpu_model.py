"""A GPU as a calculation: what the host takes is measured."""

from __future__ import annotations

from collections.abc import Iterator

from tests.docs.ledger import newest

DOCUMENT = "docs/gpu-model.md"


def held() -> Iterator[str]:
    new, old = (newest("host.jsonl", triton=version).us_a_layer for version in ("3.7.*", "3.9.*"))
    yield (
        f"{new.known:.0f} µs a layer in a window that has taken its shape, {new.grows:.0f} while "
        f"it grows by a token each step, {new.first:.0f} where nothing is known yet"
    )
    yield f"{old.known:.0f}, {old.grows:.0f} and {old.first:.0f} with 3.9"
