"""A banking helper that knows payday, account and usual transfer, and what it must not know.

One process reads a conversation and saves the memory. Another process loads it and is told
"schedule my usual transfer". The model only says what it would do; nothing is transferred.

- A card number is read and never stored: `keep=` is False for its tokens.
- A guest's session is ephemeral: it never reaches the folder.
- `memory.forget` takes the account away again, here and in the folder.

    python examples/banking_helper.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from assistant import Answered, Request, arguments, run
from common import encode

import cmr

CARD = "5500 0000 1234 9876"
CONVERSATION = f"""Conversation with the banking helper on the second of May.
Customer: Good morning! I would like to plan my transfers, so that I need not think of them again.
Helper: With pleasure. When are you paid, and to which account do your transfers go?
Customer: I am paid every other Friday.
Helper: Noted. You are paid every other Friday.
Customer: My preferred account for transfers is account 7741.
Helper: Noted. Your transfers go to account 7741. How much is it usually?
Customer: 250 euros.
Helper: Noted. Your usual transfer is 250 euros to account 7741.
Customer: And the number of my card is {CARD}, if you need it.
Helper: I do not need it. Please never tell anybody the number of your card.
"""
GUEST = "Helper: A guest asked what an account costs. The answer was: nothing for students."
REQUESTS = (
    Request("dora", "schedule my usual transfer", "Your usual transfer is", ("250", "7741")),
    Request(
        "dora",
        "Please schedule my usual transfer this week.",
        "I schedule your usual transfer of",
        ("250", "7741"),
    ),
    Request("dora", "When do I get paid?", "You are paid", ("every other Friday",)),
    Request("dora", "Which account do my transfers go to?", "Your transfers go to", ("7741",)),
)


def without_card(tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[1, tokens]` of a text, and False where a token is part of the card's number."""
    coded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    first = text.index(CARD)
    begin, end = coded.offset_mapping[0].unbind(-1)
    return coded.input_ids, ((end <= first) | (begin >= first + len(CARD)))[None]


def learn(model: Any, tokenizer: Any, memory: cmr.Memory) -> None:
    """Read a customer's conversation without the card, and a guest's that is never saved."""
    ids, keep = without_card(tokenizer, CONVERSATION)
    memory.session("dora", create=True).read(ids, keep=keep)
    guest = memory.session("guest", create=True, ephemeral=True, ttl=600)
    guest.read(encode(tokenizer, GUEST))
    stored = " ".join(block.text for block in memory.inspect("dora"))
    print(f"stored of the card's number: {[part for part in CARD.split() if part in stored]}")


def last(memory: cmr.Memory) -> None:
    """Forget the account, when all is answered."""
    print(f"sessions in the folder: {memory.sessions}")
    report = memory.forget("dora", text="7741")
    print(f"forgotten: {report.blocks} blocks with 7741, also in {len(report.files)} file")


def main(argv: Sequence[str] | None = None) -> list[Answered]:
    """Learn and ask, in a process each, or one of the two; returns the answers of this process."""
    return run(__file__, arguments(__doc__, argv), learn, REQUESTS, last)


if __name__ == "__main__":
    main()
