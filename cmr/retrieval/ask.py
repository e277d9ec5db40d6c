"""What a search is given, what it looks into, and what a strategy answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from cmr.kernels.reference.select import SearchColumns, may_see


class QueryParts(NamedTuple):
    """The parts of what each row asks, each a query of its own, such as sentences.

    Attributes:
        of: `[batch, tokens]` int64, the part that a token belongs to; -1: it does not ask.
        marked: `[batch, parts]` bool, whether there is a question mark in it. A number that no
            token has is no part.
    """

    of: torch.Tensor
    marked: torch.Tensor

    @classmethod
    def one(cls, token_ids: torch.Tensor, mask: torch.Tensor | None = None) -> QueryParts:
        """All of `token_ids` `[batch, tokens]` that ask, by the mask, as a single part."""
        marked = torch.zeros(len(token_ids), 1, dtype=torch.bool, device=token_ids.device)
        of = torch.zeros_like(token_ids)
        return cls(of if mask is None else of.masked_fill(~mask, -1), marked)


@dataclass(frozen=True)
class Ask:
    """What the rows of a batch look for.

    Attributes:
        states: `[batch, tokens, hidden]` at the index layer, any float dtype.
        mask: `[batch, tokens]` bool, False for tokens that do not ask; None: all do.
        sessions: `[batch]` int64 session numbers; a number that owns nothing finds nothing.
        token_ids: `[batch, tokens]` int64, the tokens themselves; None where nobody knows them.
        before: `[batch]` int64; blocks with a token at that position of their session's text or
            behind it are left out. None: none is.
        task: what the rows are about, for strategies that look at it; None: not said.
        located: whether `mask` leaves a question and nothing else; otherwise words of a template or
            of the text before may be among the tokens that ask.
        heads: by layer, `[batch, heads, tokens, head_dim]`: the tokens' own un-rotated attention
            queries there, where a strategy looks at them.
        known: `[batch, tokens, blocks]` float32 block maxima where they are kept already.
        parts: of what is asked, where somebody knows them already; None: who needs them finds them.
    """

    states: torch.Tensor
    mask: torch.Tensor | None
    sessions: torch.Tensor
    token_ids: torch.Tensor | None = None
    before: torch.Tensor | None = None
    task: str | None = None
    located: bool = False
    heads: Mapping[int, torch.Tensor] = field(default_factory=dict)
    known: torch.Tensor | None = None
    parts: QueryParts | None = None
    _found: dict[tuple[str, int, int, int], torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def to(self, device: torch.device) -> Ask:
        """The same on a device."""
        moved: dict[str, Any] = {
            part.name: value.to(device)
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), torch.Tensor)
        }
        return replace(self, **moved)

    def of_rows(self, rows: torch.Tensor) -> Ask:
        """The same of some rows, in any order and as often as wanted; without `heads` and `known`.

        `rows` are `[n]` int64.
        """
        picked: dict[str, Any] = {
            name: value.index_select(0, rows.to(value.device))
            for name in ("states", "mask", "sessions", "token_ids", "before")
            if (value := getattr(self, name)) is not None
        }
        if self.parts is not None:
            picked["parts"] = QueryParts(
                *(part.index_select(0, rows.to(part.device)) for part in self.parts)
            )
        return replace(self, heads={}, known=None, **picked)

    def only_asking(self) -> Ask:
        """The same with as many tokens as the row has that asks most. Waits for the device."""
        if self.mask is None or self.known is not None:
            return self
        most = int(self.mask.sum(-1).max()) if len(self.mask) else 0
        # Stable: tokens keep their order. Rows that ask less are filled up with masked ones.
        order = (~self.mask).long().argsort(dim=-1, stable=True)[:, :most]

        def picked(values: torch.Tensor) -> torch.Tensor:
            return values.gather(1, order.to(values.device))

        wide = order[..., None].expand(-1, -1, self.states.shape[-1]).to(self.states.device)
        heads = {}
        for layer, queries in self.heads.items():
            at = order[:, None, :, None].to(queries.device)
            heads[layer] = queries.gather(2, at.expand(-1, queries.shape[1], -1, queries.shape[3]))
        return replace(
            self,
            states=self.states.gather(1, wide),
            mask=picked(self.mask),
            token_ids=None if self.token_ids is None else picked(self.token_ids),
            heads=heads,
            parts=None if self.parts is None else self.parts._replace(of=picked(self.parts.of)),
        )

    def maxima(self, store: Searched) -> torch.Tensor:
        """Largest cosine of each token with a token of each block, `[batch, tokens, blocks]`.

        Blocks of other sessions are `-inf`.
        """
        if self.known is not None:
            return self.known

        def compared() -> torch.Tensor:
            unit = F.normalize(self.states.float(), dim=-1).to(store.index.dtype)
            return store.maxima(unit, self.sessions, 0, store.high_water)

        return self.kept("maxima", store, compared)

    def kept(self, name: str, store: Searched, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `make` gives, made once for a store as it is now."""
        # Several steps of one search look at the same. The key says of which store and when: an ask
        # may live on, and what was forgotten since must not be found by it.
        version = id(store), store.ledger.changes, store.high_water
        if any(key[1:] != version for key in self._found):
            self._found.clear()
        key = name, *version
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


class Searched(Protocol):
    """A store as searches see it: columns over one space of slots, and the index vectors.

    Attributes:
        block_size: tokens in a block.
        device: of the columns and of what `maxima` gives.
        index: vectors of the upper tiers, no longer than 1; its dtype is that of queries.
        ledger: the host's account, see `SlotLedger`.
        session, positions, token_ids, successor, predecessor, relevance, created, cursor: see
            `Columns` of `cmr.kernels.ring_link`. `created` and `cursor` count the blocks of all
            sessions: a strategy ranks them among what a row may see (`visible`), or what others
            store would show in its scores.
    """

    block_size: int
    device: torch.device
    index: torch.Tensor
    ledger: Any
    session: torch.Tensor
    positions: torch.Tensor
    token_ids: torch.Tensor
    successor: torch.Tensor
    predecessor: torch.Tensor
    relevance: torch.Tensor
    created: torch.Tensor
    cursor: torch.Tensor

    @property
    def high_water(self) -> int:
        """Slots from 0 on that have to be looked at."""
        ...

    def maxima(
        self,
        query: torch.Tensor,
        sessions: torch.Tensor,
        first: int,
        last: int,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `cmr.memory.tier_tensors.TierTensors`, as for the other two methods."""
        ...

    def maxima_at(
        self, query: torch.Tensor, sessions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The same of some slots only."""
        ...

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Index vectors of slots."""
        ...


@dataclass(frozen=True)
class Scored:
    """What a strategy says of every passage.

    Attributes:
        passages: `[batch, blocks]` float32: the score of the passage that begins at each block,
            better ones higher; `-inf` for what is not to be found. A search leaves out what a row
            may not see whatever stands here.
        certainty: `[batch]` float32, how far the best one stands out: about 1 where nothing fits,
            1.3 and more where a passage answers. None: told by the scores, or the `line`, as if
            they were those of the semantic search.
        line: the same shape as `passages`, where candidates are local maxima of something else
            than the scores that they are ranked by. None: of the scores.
        profiles: `[batch, tokens, blocks]` float32, whose cosine says how alike two passages are.
        diversity: weight of 1 less the largest cosine with a passage that was chosen before.
        values: `[batch, tokens, blocks]` float32 and
        shares: `[batch, parts, tokens]` float32, where every part is a query of its own: how well
            the passage that begins at each block matches each token, in deviations from what is
            usual, and the weight of each token in its part. Given with `winner`; None: see below.
        explained: gives for passages `[batch, k]` int64 what `selection.values_of` does, where the
            strategy knows it without comparing everything. None: everything is compared.
        winner: `[batch, blocks]` int64, the part of what is asked that found each passage. None:
            nothing is asked in parts.
    """

    passages: torch.Tensor
    certainty: torch.Tensor | None = None
    line: torch.Tensor | None = None
    profiles: torch.Tensor | None = None
    diversity: float = 0.0
    values: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    explained: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    winner: torch.Tensor | None = None


class Strategy(Protocol):
    """Turns what is asked into a score for every passage.

    It may have more methods, which are called where it has them: `follow(store)` after something
    was forgotten, to drop what it keeps of it; `close()` when the memory is detached; and
    `settings(ask, config)`, which gives the configuration that holds for what is asked.
    """

    def score(self, ask: Ask, store: Searched) -> Scored:
        """Scores of all passages below `store.high_water`."""
        ...


def tell(strategies: Iterable[Strategy], what: str, *given: Any) -> None:
    """Call a method of those strategies that have it."""
    for strategy in strategies:
        method = getattr(strategy, what, None)
        if method is not None:
            method(*given)


def columns_of(store: Searched, size: int) -> SearchColumns:
    """The columns of the first `size` slots."""
    return SearchColumns(
        store.session[:size],
        store.positions[:size],
        store.successor[:size],
        store.predecessor[:size],
        store.created[:size],
    )


def visible(ask: Ask, store: Searched) -> torch.Tensor:
    """The blocks `[batch, blocks]` bool that each row may find."""

    def seen() -> torch.Tensor:
        return may_see(columns_of(store, store.high_water), ask.sessions, ask.before)

    return ask.kept("visible", store, seen)
