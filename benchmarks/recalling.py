"""Asking with the memory attached: the answer and the passages that were recalled for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.common import NEW_TOKENS, answer
from benchmarks.documents import Fact


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


def rank_of(fact: Fact, passages: list[Passage]) -> int | None:
    """The place (1 = first) of the first passage that overlaps the fact; None if none does."""
    for place, p in enumerate(passages, 1):
        if p.start < fact.end and p.end > fact.start:
            return place
    return None


def coverage(fact: Fact, passages: list[Passage]) -> float:
    """The share of the fact's tokens that stand in some recalled passage."""
    seen = {t for p in passages for t in range(max(p.start, fact.start), min(p.end, fact.end))}
    return len(seen) / (fact.end - fact.start)


def overrides(pairs: list[str] | None) -> dict[str, Any]:
    """`name=value` words as settings for `attach`; values are JSON, else text.

    Raises:
        ValueError: a word without `=`.
    """
    out: dict[str, Any] = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise ValueError(f"a setting like blocks=2 expected, got {pair!r}")
        try:
            out[name] = json.loads(value)
        except json.JSONDecodeError:
            out[name] = value
    return out


def described(memory: Any) -> dict[str, Any]:
    """The memory's whole configuration as a dictionary, for the rows."""
    config = getattr(memory, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else {}
