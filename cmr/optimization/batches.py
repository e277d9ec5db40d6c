"""Batches of texts of different lengths, run with little padding."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cmr._fork import renew
from cmr.config import checks as check

LEAST_SAVED = 0.1
"""Share of the tokens that must be saved for a batch to be split, as joining outputs costs, too."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch that run together, from column `start` on and up to `stop`."""

    rows: tuple[int, ...]
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Tokens that are run, padding among them."""
        return len(self.rows) * (self.stop - self.start)


class BatchProcessingOptimizer:
    """Splits a padded batch into micro-batches of texts of like length, and puts it back together.

    A batch of which that saves less than `LEAST_SAVED` is handed through as it is, whatever its
    size. May be used from several threads.

    Args:
        batch_tokens: most tokens of a micro-batch, padding among them; a single longer text runs
            alone. 1 or more.

    Attributes:
        given: tokens of all batches so far, as they were padded.
        run: of them, tokens that went through the model.

    Raises:
        ConfigError: `batch_tokens` is no positive integer.
    """

    def __init__(self, batch_tokens: int = 2048) -> None:
        self.batch_tokens = check.integer("batch_tokens", batch_tokens, 1)
        self.given = self.run = 0
        self._counting = threading.Lock()
        renew(self, "_counting", threading.Lock)

    def plan(self, attention_mask: torch.Tensor) -> list[MicroBatch]:
        """Which rows run together: like ones, as many as the limit allows, longest first.

        Args:
            attention_mask: `[batch, tokens]`, 0 for padding on either side; a token in every row.
        """
        spans = [_span(row) for row in attention_mask.bool().cpu()]
        # The longest first: a micro-batch only ever gets rows that are no longer than its own.
        waiting = sorted(range(len(spans)), key=lambda i: (spans[i][0] - spans[i][1], spans[i]))
        found: list[MicroBatch] = []
        for row in waiting:
            start, stop = spans[row]
            if found:
                last = found[-1]
                wider = MicroBatch((*last.rows, row), min(last.start, start), max(last.stop, stop))
                alone = last.tokens + stop - start
                # Beside a much longer text a row would be mostly padding: it waits for its like.
                if wider.tokens <= self.batch_tokens and wider.tokens <= 1.25 * alone:
                    found[-1] = wider
                    continue
            found.append(MicroBatch((row,), start, stop))
        return found

    def forward(
        self,
        run: Callable[[MicroBatch, dict[str, torch.Tensor]], Any],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> Any:
        """What one forward of the whole batch gives, for its tokens; at padding anything.

        Args:
            run: runs a micro-batch with `input_ids`, `attention_mask` and, where columns in front
                were cut away, `position_ids`; gives a mapping of outputs.
            input_ids: `[batch, tokens]` integers.
            attention_mask: the same shape; None: no padding, and all rows run together.

        Returns:
            Of a batch that was split an output of the same kind: tensors `[batch, tokens, ...]` put
            together in the order and place of the rows, everything else as the last micro-batch
            gave it, and no cache. Else the model's own.
        """
        given = input_ids.numel()
        parts = [] if attention_mask is None else self.plan(attention_mask)
        tokens = sum(part.tokens for part in parts)
        whole = not parts or tokens > (1 - LEAST_SAVED) * given
        with self._counting:
            self.given += given
            self.run += given if whole else tokens
        if whole:
            inputs = {"input_ids": input_ids}
            if attention_mask is not None:
                inputs["attention_mask"] = attention_mask
            rows = tuple(range(len(input_ids)))
            return run(MicroBatch(rows, 0, input_ids.shape[1]), inputs)
        assert attention_mask is not None
        outputs = [(part, run(part, self._cut(part, input_ids, attention_mask))) for part in parts]
        return _join(outputs, *input_ids.shape)

    def _cut(
        self, part: MicroBatch, input_ids: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        # Without the columns in front, places must be said: the model would count from 0.
        rows = torch.tensor(part.rows, device=input_ids.device)
        columns = slice(part.start, part.stop)
        inputs = {
            "input_ids": input_ids[rows, columns],
            "attention_mask": mask[rows.to(mask.device), columns],
        }
        if part.start:
            places = torch.arange(part.start, part.stop, device=input_ids.device)
            inputs["position_ids"] = places.expand(len(rows), -1)
        return inputs

    def stats(self) -> dict[str, Any]:
        """`tokens` given so far, `run` of them, and `saved`, the share that was not run."""
        with self._counting:
            given, run = self.given, self.run
        return {"tokens": given, "run": run, "saved": 1 - run / given if given else 0.0}


def _span(row: torch.Tensor) -> tuple[int, int]:
    held = row.nonzero()[:, 0]
    return int(held[0]), int(held[-1]) + 1


def _join(outputs: list[tuple[MicroBatch, Any]], batch: int, tokens: int) -> Any:
    """Outputs of micro-batches as one of the whole batch."""
    last = outputs[-1][1]
    parts = [part for part, _ in outputs]
    joined = {
        name: _whole([output[name] for _, output in outputs], parts, batch, tokens)
        for name in last
        # A cache holds the rows of one micro-batch alone.
        if name != "past_key_values"
    }
    return type(last)(**joined)


def _whole(values: list[Any], parts: list[MicroBatch], batch: int, tokens: int) -> Any:
    """One field of all micro-batches: tensors a row and token are put together."""
    first = values[0]
    if isinstance(first, tuple):
        layers = zip(*values, strict=True)
        return tuple(_whole(list(layer), parts, batch, tokens) for layer in layers)
    if not isinstance(first, torch.Tensor) or first.ndim < 2:
        return values[-1]
    whole = first.new_zeros(batch, tokens, *first.shape[2:])
    for value, part in zip(values, parts, strict=True):
        whole[list(part.rows), part.start : part.stop] = value
    return whole
