"""The newest tokens of a text as a query that grows: what was compared is not compared again."""

from __future__ import annotations

import copy

import torch

from cmr.kernels.reference.select import Selection
from cmr.kernels.ring_write import ring_write_index
from cmr.kernels.select import Scratch, new_scratch
from cmr.memory.block_store import RingBuffer
from cmr.retrieval.ask import Ask
from cmr.retrieval.choice import Choice


class RollingQuery:
    """The last tokens of some rows, and how well each of them matches every stored block.

    A search after some decoding steps compares the tokens that came since the last one with all
    blocks, and all tokens with the blocks that were written since; nothing else. All tensors are
    allocated once.

    Args:
        rows: rows of the batch.
        tokens: tokens that are kept; older ones give way.
        ring: the store that is searched.
        sessions: `[rows]` int64, whose blocks each row may see.
        located: whether the tokens are a question and what was answered, without a template.
        task: what the rows are about; None: not said.

    Attributes:
        sessions: as given.
        maxima: `[rows, tokens, slots]` float32, see `block_maxima`; tokens in no particular order.
        mask: `[rows, tokens]` bool, True where there is a token that asks.
        found: the candidates that the last search wrote; None before the first. The next one
            writes over them.
    """

    def __init__(
        self,
        rows: int,
        tokens: int,
        ring: RingBuffer,
        sessions: torch.Tensor,
        located: bool = False,
        task: str | None = None,
    ) -> None:
        self._ring, self.sessions = ring, sessions
        self._located, self._task = located, task
        like = ring.index
        self._query = like.new_zeros(tokens, rows, like.shape[-1])  # tokens of a step lie together
        self.maxima = torch.zeros(rows, tokens, ring.slots, device=ring.device)
        self.mask = torch.zeros(rows, tokens, dtype=torch.bool, device=ring.device)
        self._ids = torch.full((rows, tokens), -1, device=ring.device)
        self.found: Selection | None = None
        self._scratch: dict[int, Scratch] = {}
        self._choice: Choice | None = None
        self._next = 0
        self._seen = ring.ledger.changes
        self._places = torch.arange(tokens * rows, device=ring.device)
        self._picks: dict[int, torch.Tensor] = {}

    def add(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        token_ids: torch.Tensor | None = None,
    ) -> None:
        """Take new tokens in and bring everything up to date.

        Args:
            states: `[rows, new, hidden]` at the index layer, any float dtype; of more than
                `tokens` the last ones count.
            mask: `[rows, new]` bool, False for tokens that do not ask; None: all do.
            token_ids: `[rows, new]` int64; None where nobody knows them.
        """
        tokens = self.mask.shape[1]
        states = states[:, -tokens:]
        new, done = states.shape[1], 0
        self._compare_written()
        while done < new:  # twice where the end of the tensors lies between
            count = min(new - done, tokens - self._next)
            where = slice(self._next, self._next + count)
            self._write(where, states, done)
            if mask is None:
                self.mask[:, where] = True
            else:
                self.mask[:, where] = mask[:, -new:][:, done : done + count]
            if token_ids is None:
                self._ids[:, where] = -1
            else:
                self._ids[:, where] = token_ids[:, -new:][:, done : done + count]
            self._compare(where, 0, self._ring.high_water)
            done += count
            self._next = (self._next + count) % tokens

    def ask(self) -> Ask:
        """The same as a question on its own; its tensors are views that go on changing."""
        return Ask(
            states=self._query.transpose(0, 1),
            mask=self.mask,
            sessions=self.sessions,
            token_ids=self._ids,
            task=self._task,
            located=self._located,
            known=self.maxima[:, :, : self._ring.high_water],
        )

    @property
    def width(self) -> int:
        """Slots that a search looks at: those ever written, rounded up to a power of two.

        What lies behind them belongs to no session. So there are few sizes of scratch.
        """
        return min(self._ring.slots, 1 << max(0, self._ring.high_water - 1).bit_length())

    @property
    def scratch(self) -> Scratch:
        """What a search needs while it runs, kept for the next one."""
        if self.width not in self._scratch:
            rows, tokens = self.mask.shape
            self._scratch[self.width] = new_scratch(self.maxima, rows, tokens, self.width)
        return self._scratch[self.width]

    def settle(self, choice: Choice) -> Choice:
        """The choice in the tensors of the one before, where it has the same shape.

        So it stays where a decoding step that was captured looks for it.
        """
        kept = self._choice
        if kept is None or kept.table.shape != choice.table.shape:
            self._choice = choice
            return choice
        for name in ("table", "stamps", "scores", "certainty"):
            getattr(kept, name).copy_(getattr(choice, name))
        return kept

    def reorder(self, rows: torch.Tensor) -> None:
        """Rows follow their beams, in place."""
        rows = rows.to(self.mask.device)
        self._query.copy_(self._query.index_select(1, rows))
        for tensor in (self.maxima, self.mask, self._ids, self.sessions):
            tensor.copy_(tensor.index_select(0, rows))

    def select(self, rows: torch.Tensor) -> RollingQuery:
        """A query of its own of the given rows, in their order."""
        rows = rows.to(self.mask.device)
        other = copy.copy(self)
        other._query = self._query.index_select(1, rows)
        for name in ("maxima", "mask", "_ids", "sessions"):
            setattr(other, name, getattr(self, name).index_select(0, rows))
        other._places = torch.arange(other.mask.numel(), device=rows.device)
        other._scratch, other._picks = {}, {}
        other.found = other._choice = None
        return other

    def _write(self, where: slice, states: torch.Tensor, done: int) -> None:
        """Unit states of the tokens from `done` on, to the given places."""
        rows, new = states.shape[:2]
        if new not in self._picks:
            order = torch.arange(rows * new).view(rows, new).t().flatten()
            self._picks[new] = order.to(self._places.device)
        count = where.stop - where.start
        ring_write_index(
            self._query.flatten(0, 1)[:, None],
            None,
            self._places[where.start * rows : where.stop * rows],
            self._picks[new][done * rows : (done + count) * rows],
            states,
        )

    def _compare_written(self) -> None:
        """All tokens with the blocks that were written since the last time."""
        for first, last in self._ring.ledger.changed_since(self._seen):
            self._compare(slice(None), first, last)
        self._seen = self._ring.ledger.changes

    def _compare(self, tokens: slice, first: int, last: int) -> None:
        out = self.maxima[:, tokens, first:last]
        self._ring.maxima(self._query[tokens].transpose(0, 1), self.sessions, first, last, out)
