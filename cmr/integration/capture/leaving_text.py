"""Text on its way from a window into memory, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.capture.columns import of_rows
from cmr.integration.capture.piece_scores import Piece
from cmr.integration.capture.row_text import RowText
from cmr.integration.capture.turns import stored_only
from cmr.integration.capture.window_record import WindowRecord
from cmr.memory.sessions import SessionTable

SCORE = "score."
"""Prefix of columns that hold raw scores of the tokens at the index layer, by method."""
FROM_STATES = ("attention_based", "variance_based", "hybrid")
"""Methods that need nothing but the index layer's states."""


@dataclass(frozen=True)
class LeavingText:
    """Tokens that become memory: of the rows that write, in the order of the text.

    Attributes:
        sessions: session number of each row.
        columns: what was noted of the tokens, `[rows, tokens, ...]` each: `token_ids`, `rope`,
            `index` and whatever else.
        valid: each row's half-open range of tokens that become memory.
        starts: position that a row's first token of that range gets in its session's text.
        first: column of each row's first token; outside of the columns where it is not among them.
        keep: `[rows, tokens]` bool, False for tokens that must never be stored; None: all may.
        finished: whether the text ends here, so that scores may look at all of it.
        texts: of each row its text, for its session to know it again; None: of none.
        kinds: `[rows, 1 + tokens]` int8 on the CPU, see `Captured`; None: nobody knows.
        lead: how many columns in front of these left with them and become memory in no row.
    """

    sessions: list[int]
    columns: dict[str, torch.Tensor]
    valid: list[tuple[int, int]]
    starts: list[int]
    first: list[int]
    keep: torch.Tensor | None
    finished: bool
    texts: list[RowText] | None = None
    kinds: torch.Tensor | None = None
    lead: int = 0

    @classmethod
    def pop(
        cls,
        record: WindowRecord,
        tokens: int,
        table: SessionTable,
        kept: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor | None],
        finished: bool,
    ) -> LeavingText:
        """Take the oldest `tokens` out of a record; `kept` says which ids may be stored."""
        columns, valid, first = record.pop(tokens)
        writers = record.writers
        writing = of_rows(writers, len(record.padding))
        columns = {name: writing(column) for name, column in columns.items()}
        sessions = [record.sessions[row] for row in writers]
        valid, first = [valid[row] for row in writers], [first[row] for row in writers]
        # Blocks are cut from the first token on that is stored: what is sent together stays so.
        lead = min((start for start, stop in valid if start < stop), default=0)
        columns, tokens = {n: x[:, lead:] for n, x in columns.items()}, tokens - lead
        valid = [(a - lead, b - lead) if a < b else (0, 0) for a, b in valid]
        first = [at - lead for at in first]
        if any(0 <= at < tokens for at in first):
            # The attention sink's state is no content: it must match nothing.
            index = columns["index"]
            places = torch.arange(tokens, device=index.device)
            sink = places == torch.tensor(first, device=index.device)[:, None]
            columns["index"] = index.masked_fill(sink[..., None], 0.0)
        # Rows of one session follow each other in its text.
        starts, ahead = [], dict.fromkeys(sessions, 0)
        for session, (start, stop) in zip(sessions, valid, strict=True):
            starts.append(table.position(session) + ahead[session])
            ahead[session] += max(0, stop - start)
        texts = None if record.texts is None else [record.texts[row] for row in writers]
        wanted = _wanted(texts, columns["token_ids"], first, finished)
        keep = kept(columns["token_ids"], wanted)
        kinds = _kinds(texts, valid, first, tokens)
        return cls(sessions, columns, valid, starts, first, keep, finished, texts, kinds, lead)

    @property
    def mask(self) -> torch.Tensor:
        """`[rows, tokens]` bool on the CPU, True for tokens that are stored."""
        at = torch.arange(self.columns["token_ids"].shape[1])
        mask = torch.stack([(at >= start) & (at < stop) for start, stop in self.valid])
        return mask if self.keep is None else mask & self.keep.cpu()

    def note(self, table: SessionTable) -> None:
        """Note in the sessions what of it was stored."""
        if self.texts is None:
            return
        ids, mask = self.columns["token_ids"].cpu(), self.mask
        for row, text in enumerate(self.texts):
            position = self.starts[row] - self.valid[row][0]
            text.note(table, self.sessions[row], ids[row], mask[row], -self.first[row], position)

    def only(self, keep: torch.Tensor) -> LeavingText:
        """The same where only some tokens, `[rows, tokens]` bool on the CPU, may be stored.

        Of the others nothing is left but their ids.
        """
        columns = dict(self.columns)
        for name, x in columns.items():
            if x.is_floating_point():
                gone = ~keep.to(x.device).view(*keep.shape, *[1] * (x.ndim - 2))
                columns[name] = x.masked_fill(gone, 0)
        return replace(self, columns=columns, keep=keep.to(columns["token_ids"].device))

    def relevance(self, scorer: BlockScorer, block_size: int) -> torch.Tensor:
        """Relevance of the blocks, `[rows, blocks]` float32 in [0, 1]."""
        # Of a text that goes on only the states are at hand, see `BlockScorer.of_states`; a
        # finished one is scored by the configured method, where what it needs was noted.
        columns, method = self.columns, scorer.method
        index = columns["index"]
        if self.finished and method is not None:
            mask = self.mask.to(index.device)
            if method in FROM_STATES:
                # Not `first`: the first token's state is 0 already where it is one.
                piece = Piece(columns["token_ids"], columns["rope"], index, mask, first=False)
                return scorer.of_piece(piece)
            if SCORE + method in columns:
                return scorer.of_scores(columns[SCORE + method].to(index.device), mask)
        # A row of which nothing is stored says nothing of what scores are usual.
        rows = zip(self.valid, self.mask.any(1).tolist(), strict=True)
        return scorer.of_states(index, block_size, [v if some else (0, 0) for v, some in rows])


def _wanted(
    texts: list[RowText] | None, token_ids: torch.Tensor, first: list[int], finished: bool
) -> torch.Tensor | None:
    """Which of ids `[rows, tokens]` are to be stored by what is known of the texts; None: all."""
    if texts is None:
        return None
    rows = zip(texts, token_ids.cpu(), first, strict=True)
    wanted = torch.stack([text.kept(ids, -at, finished) for text, ids, at in rows])
    # Where it is all of them, nothing has to be left out of the blocks.
    return None if bool(wanted.all()) else wanted.to(token_ids.device)


def _kinds(
    texts: list[RowText] | None, valid: list[tuple[int, int]], first: list[int], tokens: int
) -> torch.Tensor | None:
    """Kinds `[rows, 1 + tokens]` of tokens, see `turns`; None: nobody knows them."""
    if texts is None or any(text.told is None for text in texts):
        return None
    kinds = torch.stack([t.kinds(-at, tokens) for t, at in zip(texts, first, strict=True)])
    return stored_only(kinds, valid)
