"""What clients send becomes token ids, by the tokenizer's own template."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from cmr.serving.refusals import Refusal


class Prompts:
    """Turns messages and texts into token ids.

    Args:
        tokenizer: of the model.
        most: tokens of a prompt, at most.
        positions: that the model itself can tell apart; None: any number. With memory they are no
            limit, as a prompt goes through the window in pieces.
        tools: whether this model is the one that is told of tools.
    """

    def __init__(
        self, tokenizer: Any, most: int, positions: int | None, tools: bool = True
    ) -> None:
        self._tokenizer, self._most, self._positions = tokenizer, most, positions
        self._tools = tools
        # Tokenizers change themselves while they are called in some ways.
        self._lock = threading.Lock()

    def of_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: int,
        bare: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        """Ids of a conversation that the model is to go on with.

        `answer` is how many tokens may come behind it, `bare` whether it is asked without memory,
        `tools` what the model may call.

        Raises:
            Refusal: the model has no chat template, the template does not take the messages, it
                says nothing of tools, or the ids are too long.
        """
        tools = tools if self._tools else ()
        # The template has written the special tokens already.
        text = self._written(messages, begins_answer=True, tools=list(tools) or None)
        if tools and text == self._written(messages, begins_answer=True):
            raise Refusal(400, "tools", "tools: this model's chat template knows none, so it would "
                                        "not be told of them")  # fmt: skip
        return self._encoded(text, answer, bare, add_special_tokens=False)

    def of_said(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Ids of a conversation that is to be remembered; see `of_messages`."""
        return self._plain(self._written(messages, begins_answer=False))

    def length(self, text: str) -> int:
        """How many tokens a text has by itself."""
        return len(self._plain(text))

    def of_text(self, text: str, answer: int, bare: bool) -> tuple[int, ...]:
        """Ids of a text that the model is to go on with; see `of_messages`."""
        return self._encoded(text, answer, bare)

    def of_document(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is to be read, of any length."""
        with self._lock:
            ids = tuple(self._tokenizer(text, verbose=False)["input_ids"])
        if not ids:
            raise Refusal(400, "empty", "text: at least one token expected")
        return ids

    def _plain(self, text: str) -> tuple[int, ...]:
        """Ids of a text that has all its special tokens, or is to have none."""
        with self._lock:
            return tuple(
                self._tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
            )

    def _written(
        self, messages: Sequence[Mapping[str, Any]], begins_answer: bool, tools: Any = None
    ) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise Refusal(
                400,
                "no_chat_template",
                "this model has no chat template: plain text expected, as /v1/completions takes it",
            )
        try:
            with self._lock:
                text: str = self._tokenizer.apply_chat_template(
                    list(messages), tools=tools, tokenize=False, add_generation_prompt=begins_answer
                )
        except Exception:
            # Templates raise whatever they like, and their messages may quote what was said.
            raise Refusal(
                400, "template", "the model's chat template does not take these roles in this order"
            ) from None
        return text

    def _encoded(self, text: str, answer: int, bare: bool, **options: bool) -> tuple[int, ...]:
        with self._lock:
            ids = tuple(self._tokenizer(text, verbose=False, **options)["input_ids"])
        if not ids:
            raise Refusal(400, "empty", "a prompt of at least one token expected")
        most = self._most
        if bare and self._positions is not None:
            most = min(most, self._positions - answer)
        if len(ids) > most:
            raise Refusal(
                400, "context_length_exceeded",
                f"a prompt of at most {max(0, most)} tokens expected, got {len(ids)}",
            )  # fmt: skip
        return ids
