"""A conversation becomes memory: what of it is new is read, with some of the text before it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.rows import INTEGERS, Rows, require_known
from cmr.integration.core import Core
from cmr.integration.reader import Known, Reader
from cmr.memory.seen import recognised

Messages = torch.Tensor | Sequence[int] | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class RememberReport:
    """What one `remember` did.

    Attributes:
        new: tokens of the conversation that are memory now and were not before.
        known: tokens of it that the session had seen already.
        blocks: blocks stored.
        seconds: wall time.
    """

    new: int
    known: int
    blocks: int
    seconds: float


def remember(core: Core, reader: Reader, session: int, ids: torch.Tensor) -> RememberReport:
    """Store what is new of a conversation of ids `[tokens]`; see `Session.remember`."""
    started = time.perf_counter()
    ids = ids.cpu().long()
    with core.lock:
        core.keeper.expire()
        seen = recognised(core.table.texts(session), ids.int(), core.ring.block_size)
    said, told = torch.ones(len(ids), dtype=torch.bool), None
    if core.speech is not None:
        said = core.speech.said(ids, begins=True)
        told = core.speech.told(ids, said, core.vocabulary)
    known = torch.zeros_like(said)
    known[: seen.tokens] = seen.mask
    new = said & ~known
    blocks = 0
    if bool(new.any()):
        base = None if seen.key is None else (seen.key, seen.tokens)
        none = torch.zeros(0, dtype=torch.int64)
        text = RowText(~new, none, next(core.table.text_keys), base, told=told)
        blocks = _read(core, reader, session, ids, new, text)
    counts = int(new.sum()), int((said & known).sum())
    return RememberReport(*counts, blocks, time.perf_counter() - started)


def _read(
    core: Core, reader: Reader, session: int, ids: torch.Tensor, new: torch.Tensor, text: RowText
) -> int:
    """Read what is new `[tokens]` bool of a text; returns the number of blocks."""
    memory, first = core.config.memory, int(new.nonzero()[0])
    # The sinks of the text and what stands before: nothing further back has to run again. In whole
    # blocks, so that the first one that is stored is not cut by a window.
    context = min(memory.left_context, core.config.window // 2)
    context = context // memory.block_size * memory.block_size or context
    start = max(0, first - context + min(memory.sinks, context))
    sinks = min(memory.sinks, start)
    there = torch.cat([torch.arange(sinks), torch.arange(start, len(ids))])
    rows = Rows(ids[there][None], (len(there),), new[there][None])
    known = Known(text, start - sinks, first - start + sinks)
    return reader.read(rows, [session], lambda _: None, known=known).blocks


def token_ids(core: Core, messages: Messages, tokenizer: Any) -> torch.Tensor:
    """`[tokens]` int64 of a conversation: its token ids, or messages in the chat template.

    Raises `TypeError` or `ValueError` where it is neither, or there is no template for messages.
    """
    if not isinstance(messages, torch.Tensor):
        if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
            raise TypeError(
                "messages: a list of messages {'role': ..., 'content': ...} or token ids "
                f"expected, got {type(messages).__name__}"
            )
        if any(isinstance(message, Mapping) for message in messages):
            return _rendered(messages, tokenizer)
        messages = torch.tensor(list(messages))
    ids = messages[0] if messages.ndim == 2 and len(messages) == 1 else messages
    if ids.dtype not in INTEGERS or ids.ndim != 1 or not len(ids):
        raise ValueError(
            f"messages: token ids [tokens] of one conversation expected, got "
            f"{list(messages.shape)} {messages.dtype}"
        )
    require_known(ids, core.adapter.config.vocab_size)
    return ids.long()


def _rendered(messages: Sequence[Any], tokenizer: Any) -> torch.Tensor:
    for at, message in enumerate(messages):
        fields = [message.get(n) if isinstance(message, Mapping) else None
                  for n in ("role", "content")]  # fmt: skip
        if not all(isinstance(field, str) for field in fields):
            raise ValueError(
                f"messages[{at}]: {{'role': text, 'content': text}} expected, got "
                f"{type(message).__name__} with {[type(field).__name__ for field in fields]}"
            )
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "messages: token ids expected where no tokenizer with a chat template is known; give "
            "one with attach(..., tokenizer=...)"
        )
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=False)
    ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
    return torch.tensor(ids, dtype=torch.int64)
