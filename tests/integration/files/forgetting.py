"""What tests of forgetting in saved memories share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

import cmr
from cmr.memory.store import Saved

SETTINGS: dict[str, Any] = {"window": 64, "threshold": 0.0, "budget": 1024}


class Letters:
    """A tokenizer of one letter a token."""

    @staticmethod
    def decode(ids: list[int], **_: Any) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)

    @staticmethod
    def get_vocab() -> dict[str, int]:
        return {chr(0x4E00 + token): token for token in range(200)}


def attach(model: nn.Module, **settings: Any) -> cmr.Memory:
    return cmr.attach(model, **{**SETTINGS, **settings})


def names(folder: Path) -> list[str]:
    return [entry["name"] for entry in Saved.open(folder).header["sessions"]]


def notes(folder: Path) -> list[Path]:
    return list(folder.glob(".forget-*"))


def held_by_a_reader(folder: Path) -> list[Any]:
    """Somebody reads the folder as long as this is kept."""
    return list(Saved.open(folder).batches())
