"""Greedy answers of stock `generate`, and the passages that memory recalled for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from benchmarks.shared.chat import INSTRUCTION, chat, chat_parts, encode

NEW_TOKENS = 24


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


@dataclass(frozen=True)
class Passage:
    """A recalled run of tokens [start, end) of what was read, with its score and gate."""

    start: int
    end: int
    score: float
    gate: float
    token_ids: tuple[int, ...]


@dataclass
class FirstRecall(StoppingCriteria):
    """Notes what the prompt itself recalled: looks once, after the first new token."""

    memory: Any
    passages: list[Passage] | None = None
    later: list[list[Passage]] = field(default_factory=list)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.passages is None:
            self.passages = recalled(self.memory)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def recalled(memory: Any, row: int = 0) -> list[Passage]:
    """The passages of the last forward for one row, best score first."""
    rows = memory.recalled
    found = rows[row] if len(rows) > row else []
    passages = [
        Passage(int(p.start), int(p.end), _number(p.score), _number(p.gate),
                tuple(int(t) for t in (p.token_ids if p.token_ids is not None else ())))
        for p in found
    ]  # fmt: skip
    return sorted(passages, key=lambda p: -p.score)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def ask(
    model: Any, tokenizer: Any, memory: Any, ids: list[int], new_tokens: int = NEW_TOKENS
) -> tuple[str, list[Passage]]:
    """Greedy reply with recall on, and the passages that the prompt recalled."""
    look = FirstRecall(memory)
    text = answer(model, tokenizer, ids, new_tokens, stopping_criteria=StoppingCriteriaList([look]))
    return text, look.passages or []
