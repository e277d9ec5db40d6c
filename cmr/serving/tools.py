"""Calls of tools, taken out of what the model answers.

A call is read where it is written as Hermes and Qwen write it: `<tool_call>`, a JSON object with
`name` and `arguments`, `</tool_call>`. What a model writes in another form stays text.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from cmr.serving.bodies import TOOL_NAME

BEGIN, END = "<tool_call>", "</tool_call>"


class Calls:
    """Takes the calls out of an answer that comes in pieces.

    Attributes:
        found: the calls, as clients of OpenAI's endpoints know them.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._held = ""

    def take(self, piece: str) -> str:
        """What can be said of the text so far: what may yet become a call waits."""
        self._held += piece
        said = ""
        while True:
            at = self._held.find(BEGIN)
            if at < 0:
                keep = _begun(self._held)
                said += self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
                return said
            said, self._held = said + self._held[:at], self._held[at:]
            stop = self._held.find(END)
            if stop < 0:
                return said
            whole, self._held = self._held[: stop + len(END)], self._held[stop + len(END) :]
            said += self._read(whole)

    def rest(self) -> str:
        """What is left at the end of the answer: a call that nothing closes may be whole."""
        left, self._held = self._held, ""
        return self._read(left + END, left) if left.startswith(BEGIN) else left

    def _read(self, whole: str, said: str | None = None) -> str:
        """Note a call, and give the text that stands in its place: none, or what was no call."""
        try:
            call = json.loads(whole[len(BEGIN) : -len(END)])
            name, arguments = call["name"], call.get("arguments", {})
            right = bool(re.fullmatch(TOOL_NAME, name)) and isinstance(arguments, dict)
            # In ASCII: a model may write halves of characters, which no reply can hold.
            written = json.dumps(arguments, allow_nan=False)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            right = False
        if not right:
            return whole if said is None else said
        function = {"name": name, "arguments": written}
        self.found.append(
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        )
        return ""


def _begun(text: str) -> int:
    """Characters at the end that may be the beginning of a call."""
    for length in range(min(len(BEGIN) - 1, len(text)), 0, -1):
        if BEGIN.startswith(text[-length:]):
            return length
    return 0
