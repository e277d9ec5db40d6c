"""What the benchmarks share: the model, chat prompts and greedy answers."""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.stats import wilson

NEW_TOKENS = 24
WINDOW = 512
INSTRUCTION = "Read the text and answer the question.\n\nText: "


def load_model() -> tuple[Any, Any]:
    """The small real model in bfloat16 on the CPU and its tokenizer.

    `CMR_MODEL` names another model (a folder or a name); otherwise the demo's model is loaded.
    """
    other = os.environ.get("CMR_MODEL")
    if other:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(other)
        model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.bfloat16)
    else:
        from cmr.demo.smollm2 import load_smollm2

        model, tokenizer = load_smollm2()
    return model.eval(), tokenizer


def chat_parts(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids before and after the content of a single user turn, answer prompt included."""
    mark = "\u241f"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, after = text.split(mark)
    return encode(tokenizer, before), encode(tokenizer, after)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of `text` without special tokens added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def chat(
    tokenizer: Any, question: str, context: list[int] | None = None, instructed: bool = False
) -> list[int]:
    """A chat prompt: the question in a user turn, `context` (token ids) before it if given.

    `instructed` says above the context what it is for; without context it changes nothing.
    """
    before, after = chat_parts(tokenizer)
    if context is None:
        return before + encode(tokenizer, question) + after
    lead, join = [], "\n\n"
    if instructed:
        lead = encode(tokenizer, INSTRUCTION)
        join = "\n\nQuestion: "
    return before + lead + list(context) + encode(tokenizer, join + question) + after


@torch.inference_mode()
def answer(
    model: Any, tokenizer: Any, ids: list[int], new_tokens: int = NEW_TOKENS, **more: Any
) -> str:
    """Greedy reply of stock `generate` to a prompt, special tokens stripped."""
    prompt = torch.tensor([ids], device=model.device)
    out = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens,
        do_sample=False, pad_token_id=tokenizer.pad_token_id, **more,
    )  # fmt: skip
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


@torch.inference_mode()
def answers(
    model: Any, tokenizer: Any, prompts: list[list[int]], batch: int, new_tokens: int = NEW_TOKENS
) -> list[str]:
    """Greedy replies to many prompts, `batch` at a time, padded on the left; prompt order kept."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out = [""] * len(prompts)
    for at in range(0, len(order), batch):
        group = order[at : at + batch]
        longest = max(len(prompts[i]) for i in group)
        ids = torch.full((len(group), longest), tokenizer.pad_token_id)
        seen = torch.zeros_like(ids)
        for row, i in enumerate(group):
            ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            seen[row, longest - len(prompts[i]) :] = 1
        done = model.generate(
            input_ids=ids.to(model.device), attention_mask=seen.to(model.device),
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        for row, i in enumerate(group):
            out[i] = tokenizer.decode(done[row, longest:], skip_special_tokens=True).strip()
    return out


class Prefilled:
    """A long prompt whose start is run through the model once and reused for many questions."""

    def __init__(
        self, model: Any, tokenizer: Any, context: list[int], instructed: bool = False
    ) -> None:
        from transformers import DynamicCache

        self.model, self.tokenizer = model, tokenizer
        self.context, self.instructed = context, instructed
        lead = encode(tokenizer, INSTRUCTION) if instructed else []
        self.start = chat_parts(tokenizer)[0] + lead + list(context)
        self.cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            ids = torch.tensor([self.start], device=model.device)
            model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def answer(self, question: str) -> str:
        """Greedy reply to the question after the prepared context; the cache is cut back."""
        ids = chat(self.tokenizer, question, self.context, self.instructed)
        assert ids[: len(self.start)] == self.start
        text = answer(self.model, self.tokenizer, ids, past_key_values=self.cache)
        self.cache.crop(len(self.start) - self.cache.get_seq_length())
        return text


def share(hits: int, n: int) -> str:
    """A share as text with its 95 % interval."""
    low, high = wilson(hits, n)
    return f"{100 * hits / max(n, 1):.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
