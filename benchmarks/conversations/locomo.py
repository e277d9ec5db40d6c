"""Conversations of LoCoMo (Maharana et al., 2024) from a folder: text, turns and questions.

The files are those of the public repository `snap-research/locomo`, one JSON object a conversation:
`session_N` lists turns with `speaker`, `text` (or `clean_text`), `dia_id` and, of a picture,
`blip_caption`; `session_N_date_time` says when; `qa` lists questions with `evidence`, the `dia_id`s
that hold the answer, and a `category`. Their licence is CC BY-NC 4.0: for evaluation only. Nothing
of them is written anywhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shared.command import UsageError

CATEGORIES = {1: "several facts", 2: "time", 3: "open", 4: "one fact"}
"""Of the questions that can be answered; those of category 5 cannot and are left out."""
_TURN = re.compile(r"D:?(\d+):(\d+)")


@dataclass(frozen=True)
class Asked:
    """A question about a conversation.

    Attributes:
        number: its place among all questions of the file, from 0.
        text: the question.
        category: a key of `CATEGORIES`.
        evidence: token spans [start, end) of the turns that hold the answer, at least one.
    """

    number: int
    text: str
    category: int
    evidence: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Conversation:
    """A conversation as one text: its name, token ids (no special tokens), and its questions."""

    name: str
    token_ids: list[int]
    questions: tuple[Asked, ...]


def names(folder: Path) -> list[str]:
    """The conversations that lie in a folder, in order.

    Raises:
        UsageError: there is none.
    """
    found = sorted(path.stem for path in folder.glob("*.json"))
    if not found:
        raise UsageError(f"--data: a folder with NAME.json files expected, got {str(folder)!r}")
    return found


def require(folder: Path, wanted: list[str] | None) -> list[str]:
    """The names wanted, by default all.

    Raises:
        UsageError: the folder has no conversations, or not one of these.
    """
    there = names(folder)
    for name in wanted or ():
        if name not in there:
            known = ", ".join(there)
            raise UsageError(f"--conversations: names out of {known} expected, got {name!r}")
    return wanted or there


def load(folder: Path, name: str, tokenizer: Any) -> Conversation:
    """A conversation with the questions of categories 1 to 4 that name a turn as evidence.

    Args:
        folder: where `<name>.json` lies.
        name: of the conversation, one of `names`.
        tokenizer: a fast one, as offsets are needed.

    Raises:
        UsageError: the file holds something else.
    """
    path = folder / f"{name}.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        text, turns = written(told)
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        where = token_spans(turns, encoded["offset_mapping"])
        asked = tuple(_questions(told["qa"], where))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path.name}: a conversation of LoCoMo expected ({error!r})") from error
    return Conversation(name, list(encoded["input_ids"]), asked)


def written(told: dict[str, Any]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The conversation as one text, and the characters [start, end) of each turn by its `dia_id`.

    A session begins with the line `Conversation on DATE`; a turn is the line `SPEAKER: WORDS`, and
    of a picture ` [shares a picture of CAPTION]` behind it.
    """
    sessions = sorted(int(key[8:]) for key in told if re.fullmatch(r"session_\d+", key))
    text, turns = "", {}
    for number in sessions:
        text += f"Conversation on {told[f'session_{number}_date_time']}\n"
        for turn in told[f"session_{number}"]:
            line = f"{turn['speaker']}: {turn.get('clean_text') or turn['text']}"
            if turn.get("blip_caption"):
                line += f" [shares a picture of {turn['blip_caption']}]"
            turns[turn["dia_id"]] = (len(text), len(text) + len(line))
            text += line + "\n"
        text += "\n"
    return text, turns


def token_spans(
    turns: dict[str, tuple[int, int]], offsets: list[tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Token spans [start, end) of spans of characters in the order of the text, one behind another.

    A token belongs to the span that its last character lies in.
    """
    out, at = {}, 0
    for name, (begin, end) in turns.items():
        while offsets[at][1] <= begin:
            at += 1
        start = at
        while at < len(offsets) and offsets[at][1] <= end:
            at += 1
        out[name] = (start, at)
    return out


def _questions(told: list[dict[str, Any]], where: dict[str, tuple[int, int]]) -> list[Asked]:
    """Those that can be answered from turns which are there."""
    out = []
    for number, one in enumerate(told):
        named = _TURN.findall(" ".join(one["evidence"]))  # now and then two stand in one word
        turns = dict.fromkeys(f"D{session}:{turn}" for session, turn in named)
        spans = tuple(where[turn] for turn in turns if turn in where)
        if one["category"] in CATEGORIES and spans:
            out.append(Asked(number, one["question"], one["category"], spans))
    return out
