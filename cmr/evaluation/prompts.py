"""Prompts as token ids: a question alone, or behind what a system shows of the text."""

from __future__ import annotations

from typing import Any

INSTRUCTION = "Read the text and answer the question.\n\nText: "


def chat_parts(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids before and after the content of a single user turn, answer prompt included.

    Of a tokenizer without a chat template those of a plain question, as `cmr ask` puts it.
    """
    if not getattr(tokenizer, "chat_template", None):
        begin = tokenizer.bos_token_id
        lead = [] if begin is None else [begin]
        return lead + encode(tokenizer, "Question: "), encode(tokenizer, "\nAnswer:")
    # A sign that neither templates nor questions have.
    mark = "\u241f"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, after = text.split(mark)
    return encode(tokenizer, before), encode(tokenizer, after)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` without special tokens added, however long it is."""
    # Not `verbose`: that a document is longer than the model is no mistake here.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def up_to_question(tokenizer: Any, context: list[int], instructed: bool = False) -> list[int]:
    """What a prompt of `chat` begins with: all in front of the question and of what parts them."""
    lead = encode(tokenizer, INSTRUCTION) if instructed else []
    return chat_parts(tokenizer)[0] + lead + list(context)


def chat(
    tokenizer: Any, question: str, context: list[int] | None = None, instructed: bool = False
) -> list[int]:
    """A chat prompt: the question in a user turn, `context` (token ids) before it if given.

    `instructed` says above the context what it is for; without context it changes nothing.
    """
    before, after = chat_parts(tokenizer)
    if context is None:
        return before + encode(tokenizer, question) + after
    join = "\n\nQuestion: " if instructed else "\n\n"
    start = up_to_question(tokenizer, context, instructed)
    return start + encode(tokenizer, join + question) + after
