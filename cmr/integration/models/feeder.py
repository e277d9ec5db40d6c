"""`Feeder`: states that become memory are entries of a buffer, too, with their relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from cmr.integration.capture.leaving_text import SCORE, LeavingText
from cmr.integration.capture.piece_scores import attention_received
from cmr.integration.memory import Memory
from cmr.memory.buffer.layered import LayeredMemoryBuffer
from cmr.memory.relevance import RelevanceScorer
from cmr.memory.seen import stretches
from cmr.memory.token_scores import token_scores

Scorer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Relevance `[rows, tokens]` in [0, 1] of states `[rows, tokens, hidden]` and their mask."""
NOTE, GRADIENT = "note.", "gradient."
"""Columns of a text, by layer: its states, and |g·h| of its tokens, see `gradient_times_state`."""


class Feeder:
    """Puts the states of a memory's text, at some layers, into a buffer with their relevance."""

    def __init__(
        self,
        memory: Memory,
        buffer: LayeredMemoryBuffer,
        scorer: Scorer | RelevanceScorer,
        layers: Sequence[int],
    ) -> None:
        self.buffer, self.scorer, self.layers = buffer, scorer, tuple(layers)
        self.follow(memory)

    def follow(self, memory: Memory) -> None:
        """Be told what leaves this memory's windows, and what it forgets."""
        self.memory, core = memory, memory._core
        self._adapter, self._table = core.adapter, core.table
        # The memory tells of each text before it stores it: what is refused here is stored nowhere.
        core.on_leaving, core.on_forgotten = self.take, self._forget

    def note(self, layer: int, states: torch.Tensor) -> None:
        """Keep states with the tokens of the cache in use, until they become memory."""
        step = self.memory._stepper.step
        # A cache without a record is not followed: nothing of it becomes memory.
        if step is not None and step.record is not None:
            step.noted[f"{NOTE}{layer}"] = states

    def _forget(self, sessions: set[int]) -> None:
        for number in sessions:
            # -1 is no session, and has no entries.
            if number >= 0:
                self.buffer.clear_sequence(number)

    @torch.no_grad()
    def take(self, text: LeavingText) -> None:
        """Store the states of a text's tokens; a buffer's sequence is the session's number.

        `ValueError`: states are not finite, or the scorer gives no relevance; nothing is stored.
        """
        # Without sessions that are ephemeral or whose blocks have a lifetime: the buffer's copy
        # would outlive them.
        terms = [self._table.terms(number) for number in text.sessions]
        rows = [
            row for row, (ephemeral, life) in enumerate(terms) if not ephemeral and life is None
        ]
        if not rows:
            return
        mask, scored = text.mask, []
        for layer in self.layers:  # all that can go wrong, before anything is stored
            states = text.columns[f"{NOTE}{layer}"]
            stored = mask.to(states.device)
            if not bool(torch.isfinite(states[stored]).all()):
                raise ValueError(f"layer {layer}: finite states expected, got some that are not")
            scored.append((layer, states, self.relevance(layer, states, text, stored).cpu()))
        for layer, states, relevance in scored:
            for row in rows:
                ids = text.columns["token_ids"][row].tolist()
                # Positions count from the first token of the row that is no padding.
                begin = text.starts[row] - text.valid[row][0]
                # Run by run: some tokens in between must not be stored.
                for start, stop in stretches(mask[row]):
                    self.buffer.store_state(
                        states[row, start:stop],
                        layer,
                        text.sessions[row],
                        begin + start,
                        relevance[row, start:stop],
                        token_ids=tuple(ids[start:stop]),
                    )

    def relevance(
        self, layer: int, states: torch.Tensor, text: LeavingText, mask: torch.Tensor
    ) -> torch.Tensor:
        """Relevance of tokens, `[rows, tokens]` float32 in [0, 1]."""
        # A scorer of the user's is given states and nothing else, and its scale is its own.
        if not isinstance(self.scorer, RelevanceScorer):
            return _checked(self.scorer(states, mask), mask)
        method, columns = self.scorer.scoring_method, text.columns
        raw: dict[str, torch.Tensor] = {}
        if method in ("attention_based", "hybrid"):
            raw["attention_based"] = self._attention(layer, states, text, mask)
        losses = columns.get(f"{SCORE}surprise")
        if method in ("surprise", "hybrid") and losses is not None:
            raw["surprise"] = losses.to(states.device)
        if method == "gradient_based" and f"{GRADIENT}{layer}" in columns:
            raw[method] = columns[f"{GRADIENT}{layer}"].to(states.device)
        # There are no losses or gradients while generating: variance stands in for them, which
        # the scorer compares with its own kind.
        if method in ("variance_based", "hybrid") or not raw:
            raw["variance_based"] = token_scores("variance_based", states, mask)
        return self.scorer.calibrated(raw, mask, layer_idx=layer)

    def _attention(
        self, layer: int, states: torch.Tensor, text: LeavingText, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attention received at a layer; the text's first token, its sink, gets 0."""
        # Every token attends to the sink, whatever it says: what it receives is no relevance.
        seen = mask.clone()
        for row, first in enumerate(text.first):
            if 0 <= first < mask.shape[1]:
                seen[row, first] = False
        if layer < self._adapter.depth:
            rope, reach = text.columns["rope"], text.columns.get("reach")
            return attention_received(self._adapter, layer, states, rope, seen, reach)
        found = token_scores("attention_based", states, seen)
        return found.masked_fill(~seen, 0.0)


def _checked(found: object, mask: torch.Tensor) -> torch.Tensor:
    """Relevance as a scorer of the user's gave it, 0 for what is not stored."""
    if not isinstance(found, torch.Tensor) or found.shape != mask.shape:
        got = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"scorer: relevance {list(mask.shape)} expected, got {got}")
    found = found.detach().float().to(mask.device).masked_fill(~mask, 0.0)
    # Asked this way round so that NaN is refused, too.
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise ValueError("scorer: relevance in [0, 1] expected, got other numbers")
    return found
