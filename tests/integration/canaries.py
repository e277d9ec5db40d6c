"""Texts that only one session has, and a search for what is left of them anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import cmr
from benchmarks.halfway.steps.traces import left_in_tensors
from tests.integration.tiny import text

NAMES = ("anna", "ben", "carl", "dora")
SHARE = 40


def canary(name: str, tokens: int, seed: int = 0) -> torch.Tensor:
    """A text of ids that no other session's text holds, `[tokens]`."""
    return text(tokens, seed=seed) % SHARE + 3 + SHARE * NAMES.index(name)


def is_of(name: str, ids: Any) -> bool:
    """Whether all of these ids are from the session's canary."""
    low = 3 + SHARE * NAMES.index(name)
    return all(low <= int(token) < low + SHARE for token in ids)


class Traces:
    """Bytes by which what a session stores can be told: of ids, index, keys, values, and its name.

    Args:
        memory: where it is stored at present.
        name: of the session.
    """

    def __init__(self, memory: cmr.Memory, name: str) -> None:
        ring = memory._core.ring
        self.needles: dict[bytes, str] = {}
        for slot in ring.ledger.slots_of(memory._core.table.require(name)).tolist():
            tier = ring.ledger.tier_of(slot)
            at = slot - ring.ledger.tiers[tier].first
            for part, tensor in ring.parts[tier].items():
                row = tensor[at] if tensor.ndim < 4 else tensor[at, 0]
                for token in (0, -1):
                    vector = row[token] if row.ndim == 2 else row
                    self._add(vector, f"{part} of slot {slot}")
            self._add(ring.token_ids[slot], f"ids of slot {slot}")
            self._add(ring.token_ids[slot].int(), f"saved ids of slot {slot}")

    def _add(self, tensor: torch.Tensor, label: str) -> None:
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()[:64]
        if any(raw):
            self.needles[raw] = label

    def in_process(self) -> list[str]:
        """What is found in any tensor that lives in this process."""
        return left_in_tensors(self.needles)

    def in_folder(self, folder: Path, name: str = "") -> list[str]:
        """What is found in any file under a folder, the session's name included."""
        found = []
        for path in folder.rglob("*"):
            raw = path.read_bytes() if path.is_file() else b""
            found += [label for needle, label in self.needles.items() if needle in raw]
            if name and name.encode() in raw:
                found.append(f"the name in {path.name}")
        return found
