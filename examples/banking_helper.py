"""A banking helper that knows payday, account and usual transfer, and what it must not know.

- A card number is read and never stored: `keep=` is False for its tokens.
- A guest's session is ephemeral: it never reaches a file.
- `memory.forget` takes a fact away again, here and in the saved memory.

    python examples/banking_helper.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from common import both, encode, load

import cmr

CARD = "5500 0000 1234 9876"
CONVERSATION = f"""Conversation with the banking helper on the second of May.
Customer: Good morning! I would like to plan my transfers, so that I need not think of them again.
Helper: With pleasure. When are you paid, and to which account do your transfers go?
Customer: I am paid every other Friday.
Helper: Noted. The customer is paid every other Friday.
Customer: My preferred account for transfers is account 7741.
Helper: Noted. The preferred account for transfers is account 7741. How much is it usually?
Customer: My usual transfer is 250 euros.
Helper: Noted. The usual transfer is 250 euros.
Customer: And the number of my card is {CARD}, if you need it.
Helper: I do not need it. Please never tell anybody the number of your card.
"""
GUEST = "Helper: A guest asked what an account costs. The answer was: nothing for students."
PAYDAY = "When is the customer paid?"
ACCOUNT = "What is the preferred account for transfers?"
TRANSFER = "How much is the usual transfer?"


def without_card(tokenizer: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[1, tokens]` of a text, and False where a token is part of the card's number."""
    coded = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    first = text.index(CARD)
    begin, end = coded.offset_mapping[0].unbind(-1)
    return coded.input_ids, ((end <= first) | (begin >= first + len(CARD)))[None]


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[str, str]]:
    """Read, ask, forget, ask again; returns the answers without and with memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    model, tokenizer = load()
    with tempfile.TemporaryDirectory() as folder:
        with cmr.attach(model, tokenizer=tokenizer, budget=8192) as memory:
            with memory.session("dora", create=True):
                ids, keep = without_card(tokenizer, CONVERSATION)
                memory.read(ids, keep=keep)
                found = {q: both(model, tokenizer, memory, q) for q in (PAYDAY, ACCOUNT, TRANSFER)}
            stored = " ".join(block.text for block in memory.inspect("dora"))
            print(f"stored of the card's number: {[d for d in CARD.split() if d in stored]}")

            with memory.session("guest", create=True, ephemeral=True, ttl=600):
                memory.read(encode(tokenizer, GUEST))
            memory.save(folder)
            print(f"sessions in memory: {memory.sessions}")
            report = memory.forget("dora", text="7741")
            print(f"forgotten: {report.blocks} blocks with 7741, also in {len(report.files)} file")
        with cmr.load(folder, model, tokenizer=tokenizer) as memory, memory.session("dora"):
            print(f"sessions in the file, now that it is loaded again: {memory.sessions}\n")
            found["forgotten"] = both(model, tokenizer, memory, ACCOUNT)
    return found


if __name__ == "__main__":
    main()
