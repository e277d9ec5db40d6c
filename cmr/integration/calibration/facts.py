"""What a calibration reads: facts with questions about them, and text that every Python carries."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK = 1_600
"""Characters of a piece of text that stays together, about."""
_SHORTEST = 300
_MODULES = """
argparse bisect calendar collections configparser contextlib copy csv datetime decimal difflib
fractions functools heapq imaplib ipaddress locale logging mailbox mimetypes optparse pathlib pickle
platform random shelve shutil smtplib socketserver statistics string subprocess tempfile textwrap
threading timeit turtle typing uuid warnings weakref zipfile
"""


@dataclass(frozen=True)
class Fact:
    """A sentence to be found again.

    Attributes:
        sentence: what is planted.
        same: a question in its words.
        other: questions that share few words with it.
    """

    sentence: str
    same: str
    other: tuple[str, str]


# In pairs of a kind, so that each has a look-alike: a search that goes by topic alone finds both.
FACTS = tuple(
    Fact(sentence, same, (one, other))
    for sentence, same, one, other in json.loads(
        Path(__file__).with_name("facts.json").read_text("utf-8")
    )
)


def ordinary_text(tokenizer: Any, tokens: int, seed: int) -> list[list[int]]:
    """Documentation of Python and of its library: token ids of pieces of `CHUNK` characters.

    They are shuffled by `seed`. Fewer than `tokens` come where this Python carries less text.
    """
    # Every Python has it, so two machines measure alike and nothing is downloaded.
    pieces = list(_corpus())
    random.Random(seed).shuffle(pieces)
    found: list[list[int]] = []
    held = 0
    for piece in pieces:
        if held >= tokens:
            break
        found.append(encode(tokenizer, piece + "\n\n")[: tokens - held])
        held += len(found[-1])
    return found


def chunks(text: str, size: int = CHUNK) -> Iterator[str]:
    """Whole paragraphs of a text, some `size` characters at a time."""
    piece = ""
    for paragraph in text.split("\n\n"):
        while len(paragraph) > 2 * size:
            paragraph, rest = paragraph[:size], paragraph[size:]
            yield f"{piece}\n\n{paragraph}".strip()
            piece, paragraph = "", rest
        piece = f"{piece}\n\n{paragraph}".strip()
        if len(piece) >= size:
            yield piece
            piece = ""
    if len(piece) >= min(_SHORTEST, size):
        yield piece


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` without special tokens added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@functools.cache
def _corpus() -> tuple[str, ...]:
    return tuple(piece for text in (*_topics(), *_docstrings()) for piece in chunks(text))


def _topics() -> Iterator[str]:
    if importlib.util.find_spec("pydoc_data.topics") is not None:
        from pydoc_data.topics import topics

        yield from topics.values()


def _docstrings() -> Iterator[str]:
    """The docstrings of each module, together, where its source is there."""
    # Read as text: importing them would run them, and some need what is not there (turtle).
    for name in _MODULES.split():
        try:
            spec = importlib.util.find_spec(name)
            source = Path(spec.origin or "").read_text("utf-8") if spec is not None else ""
            nodes = list(ast.walk(ast.parse(source)))
        except (ImportError, OSError, SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        said = (ast.get_docstring(node) for node in nodes if isinstance(node, kinds))
        yield "\n\n".join(text for text in said if text)
