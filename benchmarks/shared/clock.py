"""Decode steps of stock `generate`, timed one by one."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


class Clock(StoppingCriteria):
    """Notes the time after each new token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def steps(self) -> list[float]:
        """Seconds of each decode step; the prompt's own forward is not among them."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def generate(model: Any, tokenizer: Any, prompt: list[int], steps: int) -> tuple[list[int], Clock]:
    """Exactly `steps` + 1 greedy tokens and the clock that saw them."""
    clock = Clock()
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        min_new_tokens=steps + 1, max_new_tokens=steps + 1, pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([clock]),
    )  # fmt: skip
    return out[0, len(prompt) :].tolist(), clock
