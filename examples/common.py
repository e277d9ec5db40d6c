"""What the examples share: the small real model, one answer, and the same question both ways."""

from __future__ import annotations

import time
from typing import Any

import torch

from cmr.demo import load_smollm2


def load() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct and its tokenizer, on the CPU; nothing is downloaded."""
    return load_smollm2()


def encode(tokenizer: Any, text: str) -> torch.Tensor:
    """Token ids `[1, tokens]` of a text to be read."""
    ids: torch.Tensor = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    return ids


def prompt(tokenizer: Any, question: str) -> str:
    """The question in the model's chat template."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return text


def answers(
    model: Any, tokenizer: Any, questions: list[str], tokens: int = 16, begins: str = ""
) -> list[str]:
    """Greedy answers to a batch of questions, by the stock `generate`.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        questions: what the users say.
        tokens: of an answer, at most.
        begins: words that each answer begins with, which the model goes on from.
    """
    batch = tokenizer(
        [prompt(tokenizer, question) + begins for question in questions],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    )
    out = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    texts = tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return [" ".join((begins + text).split()) for text in texts]


def both(
    model: Any, tokenizer: Any, memory: Any, question: str, tokens: int = 16, begins: str = ""
) -> tuple[str, str]:
    """Ask without memory and with it, print both answers whatever they are, and return them."""
    memory.pause()
    (without,) = answers(model, tokenizer, [question], tokens, begins)
    memory.resume()
    began = time.perf_counter()
    (remembered,) = answers(model, tokenizer, [question], tokens, begins)
    seconds = time.perf_counter() - began
    read = sum(passage.end - passage.start for row in memory.recalled for passage in row)
    print(f"  asked           {question}")
    print(f"  without memory  {without}")
    print(f"  with memory     {remembered}")
    print(f"                  ({read} tokens recalled, {seconds:.1f} s)\n")
    return without, remembered
