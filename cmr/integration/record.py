"""What is known of the tokens in a local window: ids, validity and index states."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cmr.integration.recall import Recall
from cmr.retrieval import RollingQuery


class WindowRecord:
    """The tokens behind the sinks of one cache, and the memory that its rows belong to.

    Chunks are kept as they came and joined only when tokens leave or a search needs them, so a
    decoding step copies nothing.

    Attributes:
        sessions: session number of each row; fixed for the life of the cache.
        writers: the rows that write to memory: the first of each group that beams or several
            returned sequences made of one input.
        padding: tokens of left padding of each row.
        behind: tokens of the first forward and of its right padding, row by row; None for none.
        recall: what the rows read at present.
        steps: forwards since the last search.
        seen: tokens seen, sinks included.
        query: the newest tokens as the last search of a decoding step left them.
        unasked: tokens that came since then.
        located: whether the last prompt was a question in a known chat template.
    """

    def __init__(
        self,
        sessions: Sequence[int],
        writers: Sequence[int],
        padding: Sequence[int],
        sinks: int,
        behind: tuple[int, Sequence[int]] | None = None,
    ) -> None:
        self.sessions = list(sessions)
        self.writers = list(writers)
        self.padding = list(padding)
        self.behind = behind
        self.recall: Recall | None = None
        self.steps = 0
        self.seen = 0
        self.query: RollingQuery | None = None
        self.unasked = 0
        self.located = False
        self._sinks = self._skip = self._first = sinks
        self._chunks: list[dict[str, torch.Tensor]] = []

    def forget_recall(self) -> None:
        """Let go of what was recalled, and search anew at the next step."""
        self.recall = self.query = None
        self.steps = -1

    def append(self, **columns: torch.Tensor) -> None:
        """Take note of new tokens; every column is `[batch, tokens, ...]`."""
        tokens = next(iter(columns.values())).shape[1]
        self.seen += tokens
        self.unasked += tokens
        if self._skip:
            dropped = min(self._skip, tokens)
            self._skip -= dropped
            columns = {name: column[:, dropped:] for name, column in columns.items()}
        self._chunks.append(columns)

    def tail(self, name: str, tokens: int) -> torch.Tensor:
        """The last `tokens` of a column, or as many as there are, `[batch, tokens, ...]`."""
        parts, held = [], 0
        for chunk in reversed(self._chunks):
            parts.append(chunk[name])
            held += chunk[name].shape[1]
            if held >= tokens:
                break
        return torch.cat(parts[::-1], dim=1)[:, -tokens:]

    def behind_sinks(self, tokens: int) -> torch.Tensor | None:
        """Which of the last `tokens` are neither padding nor sinks, `[batch, tokens]`; None: all.

        Right padding counts for tokens, as it does for the model.
        """
        start = self.seen - tokens
        if start >= max(self.padding, default=0) + self._sinks:
            return None
        first = torch.tensor(self.padding)[:, None] + self._sinks
        return torch.arange(start, self.seen) >= first

    def pop(self, tokens: int) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        """Take the oldest `tokens` out.

        Returns:
            The columns, `[batch, tokens, ...]`, and for each row the half-open range in them that
            is neither padding nor one of the sinks, a row's first real tokens. Empty where the
            second number is not above the first.
        """
        names = self._chunks[0]
        joined = {n: torch.cat([c[n] for c in self._chunks], dim=1) for n in names}
        self._chunks = [{n: x[:, tokens:] for n, x in joined.items()}]
        first = [p + self._sinks - self._first for p in self.padding]
        last = [tokens] * len(first)
        if self.behind is not None and self._first < self.behind[0]:
            length, padding = self.behind
            last = [tokens if p == 0 else length - p - self._first for p in padding]
        valid = [
            (min(tokens, max(0, start)), min(tokens, max(0, stop)))
            for start, stop in zip(first, last, strict=True)
        ]
        self._first += tokens
        return {n: x[:, :tokens] for n, x in joined.items()}, valid

    @property
    def start(self) -> int:
        """Column, in all that the cache has seen, of the first token in the record."""
        return self._first

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens`, as assisted decoding does with what was not accepted."""
        self.seen -= tokens
        self.query = None
        while tokens and self._chunks:
            held = next(iter(self._chunks[-1].values())).shape[1]
            chunk = self._chunks.pop()
            if held > tokens:
                self._chunks.append({n: x[:, : held - tokens] for n, x in chunk.items()})
            tokens -= min(held, tokens)
        self._skip += tokens

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams. Beams of one input share their session, so only tokens move."""
        self._chunks = [{n: x.index_select(0, rows) for n, x in c.items()} for c in self._chunks]
        if self.recall is not None:
            self.recall = self.recall.select(rows)
        if self.query is not None:
            self.query.reorder(rows)
