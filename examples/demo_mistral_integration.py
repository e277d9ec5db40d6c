"""A Mistral with a memory, as the specification makes one.

A Mistral has billions of weights, so by default this shows the wiring on a tiny one with random
weights: a text that passed changes what a later forward of the same session gives, no other session
sees it, and without its hooks the model is what it was, bit for bit. `--model` loads a real one, in
8 bits (bitsandbytes), and lets it answer about a text.

    python examples/demo_mistral_integration.py
    python examples/demo_mistral_integration.py --model FOLDER --document notes.txt --question "..."
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from common import answers, encode
from transformers import AutoTokenizer, MistralConfig

from cmr import MistralCMRModel, create_mistral_cmr_model

TINY = MistralConfig(
    vocab_size=1_000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=None,
)
SETTINGS = {"window": 128, "max_entries_per_layer": 2_048, "memory_weight": 0.88, "threshold": 0.0}


def wiring() -> dict[str, bool]:
    """What a memory does to a Mistral and what it does not, each looked at."""
    model = MistralCMRModel(TINY, SETTINGS)
    torch.manual_seed(0)
    text, asked = torch.randint(3, 1_000, (1, 400)), torch.randint(3, 1_000, (1, 24))
    plain = model(asked, use_memory=False).logits
    for part in text.split(100, dim=1):
        model(part, sessions="anna")
    hers = model(asked, sessions="anna").logits
    his = model(asked, sessions="ben").logits
    model.cleanup()
    bare = model.model(asked).logits
    return {
        "what passed changes a later forward of the session": not torch.equal(hers, plain),
        "another session sees nothing of it": torch.equal(his, plain),
        "without its hooks the model is as it was": torch.equal(bare, plain),
    }


def asked(name: str, document: Path, question: str) -> tuple[str, str]:
    """Answers of a real Mistral without and with the document in its memory."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = create_mistral_cmr_model(name, tokenizer=tokenizer)
    model.memory.read(encode(tokenizer, document.read_text(encoding="utf-8")))
    (remembered,) = answers(model, tokenizer, [question], tokens=32)
    model.disable_memory()
    (without,) = answers(model, tokenizer, [question], tokens=32)
    model.cleanup()
    return without, remembered


def main(argv: Sequence[str] | None = None) -> dict[str, bool] | tuple[str, str]:
    """Show the wiring, or ask a real model; returns what was seen, or both answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="name or folder of a Mistral; none: a tiny random one")
    parser.add_argument("--document", type=Path, help="a text in UTF-8")
    parser.add_argument("--question", help="about the document")
    args = parser.parse_args(argv)
    if args.model is None:
        seen = wiring()
        for said, holds in seen.items():
            print(f"  {'yes' if holds else 'NO':5}{said}")
        return seen
    if args.document is None or args.question is None:
        parser.error("--model needs a --document and a --question")
    without, remembered = asked(args.model, args.document, args.question)
    print(f"  without memory  {without}\n  with memory     {remembered}")
    return without, remembered


if __name__ == "__main__":
    main()
