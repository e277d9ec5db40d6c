"""Greedy answers of stock `generate`, and the passages that memory recalled for them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from cmr.evaluation.prompts import chat, up_to_question

NEW_TOKENS = 24


@torch.inference_mode()
def answer(
    model: Any, tokenizer: Any, ids: list[int], new_tokens: int = NEW_TOKENS, **more: Any
) -> str:
    """Greedy reply of stock `generate` to a prompt, special tokens stripped."""
    prompt = torch.tensor([ids], device=model.device)
    # Many tokenizers have no token for padding; a single row needs none, `generate` asks for it.
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    out = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens,
        do_sample=False, pad_token_id=end if pad is None else pad, **more,
    )  # fmt: skip
    text: str = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    return text.strip()


class Prefilled:
    """A long prompt whose start is run through the model once and reused for many questions."""

    def __init__(
        self, model: Any, tokenizer: Any, context: list[int], instructed: bool = False
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context, self.instructed = context, instructed
        self.start = up_to_question(tokenizer, context, instructed)
        self.cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            ids = torch.tensor([self.start], device=model.device)
            # The logits of all of a long document take more room than its keys and values.
            model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    def answer(self, question: str, new_tokens: int = NEW_TOKENS, **more: Any) -> str:
        """Greedy reply to the question after the prepared context; the cache is cut back."""
        ids = chat(self.tokenizer, question, self.context, self.instructed)
        assert ids[: len(self.start)] == self.start
        more["past_key_values"] = self.cache
        text = answer(self.model, self.tokenizer, ids, new_tokens, **more)
        # A negative length: so many tokens are cut off at the end.
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


class FirstToken(StoppingCriteria):
    """Looks once, after the first new token: when it came, and what the prompt recalled.

    Args:
        memory: whose passages are noted; None: none are.
    """

    def __init__(self, memory: Any = None) -> None:
        self.memory, self.passages = memory, list[Passage]()
        self.at: float | None = None
        """`time.perf_counter()` then."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Stops no row."""
        if self.at is None:
            # Before the look, which takes its time, too.
            self.at = time.perf_counter()
            if self.memory is not None:
                self.passages = recalled(self.memory)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def among(self) -> StoppingCriteriaList:
        """As `generate` takes it for `stopping_criteria`."""
        return StoppingCriteriaList([self])


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
    look = FirstToken(memory)
    text = answer(model, tokenizer, ids, new_tokens, stopping_criteria=look.among())
    return text, look.passages
