"""Greedy answers to many prompts at once."""

from __future__ import annotations

from typing import Any

import torch

from cmr.evaluation.answers import NEW_TOKENS


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
