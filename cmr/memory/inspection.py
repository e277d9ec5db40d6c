"""What is stored, as rows that people and programs can read."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cmr.memory.slot_ledger import TIERS
from cmr.memory.spans import flat

if TYPE_CHECKING:
    from rich.table import Table

Decode = Callable[[list[int]], str]
SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class StoredBlock:
    """One stored block.

    Attributes:
        id: its number, for life; `forget(ids=...)` and `pin` take it.
        session: name of the session that owns it.
        tier: `recent`, `working` or `long_term`.
        start: position of its first token in the session's text.
        end: position behind its last token.
        relevance: calibrated to [0, 1]; 0.5 where blocks are not scored.
        access_count: how often it was recalled.
        last_access: number of the newest block when it was last recalled, 0 for never.
        born: when its text was stored, in seconds since the epoch.
        expires: when it is to be forgotten, in seconds since the epoch; None: never.
        pinned: whether it may not be evicted.
        token_ids: its token ids, without padding.
        text: the same as text; None where no tokenizer is known.
    """

    id: int
    session: str
    tier: str
    start: int
    end: int
    relevance: float
    access_count: int
    last_access: int
    born: float
    expires: float | None
    pinned: bool
    token_ids: tuple[int, ...] = field(repr=False)
    text: str | None = field(default=None, repr=False)


def blocks_from(
    columns: Mapping[str, torch.Tensor],
    numbers: torch.Tensor,
    sessions: Sequence[str],
    tiers: Sequence[str],
    decode: Decode | None,
) -> list[StoredBlock]:
    """Blocks as rows for people, from columns as `BlockStore.about` gives them.

    `numbers` are theirs, `sessions` the name of each one's session, `tiers` names by number.
    """
    names = ("tier", "relevance", "access_count", "last_access", "time", "deadline", "flags")
    rows = zip(*(columns[name].tolist() for name in names), strict=True)
    found = []
    for i, (tier, relevance, count, last, born, deadline, flags) in enumerate(rows):
        positions, ids = columns["positions"][i], columns["token_ids"][i]
        held = positions >= 0
        tokens = ids[held].tolist()
        found.append(
            StoredBlock(
                id=int(numbers[i]),
                session=sessions[i],
                tier=tiers[tier],
                start=int(positions[held].min()),
                end=int(positions[held].max()) + 1,
                relevance=relevance,
                access_count=count,
                last_access=last,
                born=born,
                expires=None if math.isinf(deadline) else deadline,
                pinned=bool(flags),
                token_ids=tuple(tokens),
                text=None if decode is None else decode(tokens),
            )
        )
    return found


class Inspection(Sequence[StoredBlock]):
    """Stored blocks that fit a question, in the order asked for.

    Args:
        blocks: those that are shown.
        total: how many there are in all, where only the first ones are shown.
    """

    def __init__(self, blocks: Sequence[StoredBlock], total: int) -> None:
        self._blocks, self.total = list(blocks), total

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[StoredBlock]:
        return iter(self._blocks)

    def __getitem__(self, at: Any) -> Any:
        return self._blocks[at]

    def __repr__(self) -> str:
        return f"<Inspection of {len(self)} blocks, of {self.total}>"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain dictionaries, ready for JSON."""
        return [asdict(block) for block in self._blocks]

    def table(self) -> Table:
        """The same as a table of `rich`, which must be installed."""
        from rich.table import Table
        from rich.text import Text

        table = Table(caption=f"{len(self)} of {self.total:,} blocks", caption_justify="left")
        for name in ("id", "session", "tier", "positions", "relevance", "recalled", "stored"):
            right = name in ("id", "positions", "relevance", "recalled")
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        table.add_column("text", overflow="fold")
        for block in self._blocks:
            shown = block.text if block.text is not None else " ".join(map(str, block.token_ids))
            shown = " ".join(shown.split())
            if len(shown) > SHOWN_CHARACTERS:
                shown = shown[: SHOWN_CHARACTERS - 1] + "…"
            when = datetime.datetime.fromtimestamp(block.born).isoformat(" ", "minutes")
            table.add_row(
                f"{block.id}{' pinned' if block.pinned else ''}",
                Text(block.session),
                block.tier,
                f"{block.start}–{block.end}",
                f"{block.relevance:.2f}",
                str(block.access_count),
                when,
                Text(shown),
            )
        return table


ORDERS = ("position", "relevance", "recalled", "newest")


@dataclass(frozen=True)
class Question:
    """Which stored blocks are wanted, and in which order.

    Attributes:
        session: name of the session; None: all.
        tier: name of the tier; None: all.
        text: what their text must contain, in any case and line breaks; None: anything.
        min_relevance: least relevance in [0, 1].
        start: only blocks with a token at this position of the session's text or behind it.
        end: only blocks with a token in front of this position; None: to the end.
        order: `position` (session by session), `relevance`, `recalled` or `newest`, best first.
        limit: how many at most; None: all.

    Raises:
        ValueError: an order or tier that is unknown, a limit below 0, a relevance outside [0, 1].
    """

    session: str | None = None
    tier: str | None = None
    text: str | None = None
    min_relevance: float = 0.0
    start: int = 0
    end: int | None = None
    order: str = "position"
    limit: int | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        if self.tier is not None and self.tier not in TIERS:
            raise ValueError(f"tier: one of {', '.join(TIERS)} expected, got {self.tier!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order: one of {', '.join(ORDERS)} expected, got {self.order!r}")
        if not 0.0 <= self.min_relevance <= 1.0:
            raise ValueError(f"min_relevance: a number in [0, 1] expected, {self.min_relevance!r}")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit: 0 or more expected, got {self.limit!r}")

    def of(self, blocks: Sequence[StoredBlock]) -> Inspection:
        """Those of the blocks that are wanted.

        Raises:
            ValueError: a text is wanted where the blocks have none.
        """
        if self.text is not None and any(block.text is None for block in blocks):
            raise ValueError("text: to look for text a tokenizer is needed, and none is known")
        found = [block for block in blocks if self._wanted(block)]
        keys = {
            "position": lambda block: (block.session, block.start),
            "relevance": lambda block: -block.relevance,
            "recalled": lambda block: (-block.access_count, -block.last_access),
            "newest": lambda block: -block.id,
        }
        found.sort(key=keys[self.order])
        return Inspection(found if self.limit is None else found[: self.limit], len(found))

    def _wanted(self, block: StoredBlock) -> bool:
        return (
            self.session in (None, block.session)
            and self.tier in (None, block.tier)
            and block.relevance >= self.min_relevance
            and block.end > self.start
            and (self.end is None or block.start < self.end)
            and (self.text is None or flat(self.text) in flat(block.text or ""))
        )
