"""What is known of the forward under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cmr.errors import AttachError
from cmr.integration.capture.text_search import TextSearch
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.requests.request import LastForward, Request
from cmr.integration.reweave.aside import Aside
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.recall import Recall

if TYPE_CHECKING:
    from cmr.integration.hooks.fixed_step import FixedStep


@dataclass
class Step:
    """One forward of the decoder. It knows sessions by their numbers only.

    Attributes:
        record: of the window of its cache; None where its text cannot become memory.
        sessions: session number of each row.
        token_ids: `[batch, tokens]`; zeros where only embeddings are known.
        position_ids: `[batch, tokens]` as the model uses them.
        recall: what its layers read; None: nothing.
        query_mask: `[batch, tokens]` bool, False for tokens that must not read; None: all may.
        new: `[batch, tokens]` bool, which tokens are no padding; None where all are.
        seen: tokens that the cache has seen before.
        goes_on: whether the new tokens go on with a text, and ask nothing new.
        unrecorded: the search of its text where that has no record.
        told: takes note of it for a handle, see `LastForward`.
        ready: what each layer reads, put together ahead of the forward; None where layers put
            theirs together as they come to it.
        fixed: what replays it; None: it runs.
        before: puts its cache back to what it was in front of it; None: it cannot be.
        index: `[batch, tokens, hidden]` states that entered the index layer.
        states: states that entered the layers that store them.
        noted: further columns `[batch, tokens, ...]` for the record, by name.
        leaving: rotated keys and values that left the window in it, by layer.
        turns: cosine and sine that turn its queries, by kind of rotary embedding.
        gates: share of attention that went to memory, by layer.
        entering: states `[batch, tokens, hidden]` that entered the layers where tokens are compared
            with stored ones, until the head has spoken.
        weights: whether attention weights are to come out of it.
        aside: what its layers look at less while they read; None: nothing.
        said: `[batch, tokens]` float32, share of the stored tokens in what was said next, of the
            tokens that have logits; None: nothing was asked.
    """

    record: WindowRecord | None
    sessions: list[int]
    token_ids: torch.Tensor
    position_ids: torch.Tensor
    recall: Recall | None = None
    query_mask: torch.Tensor | None = None
    new: torch.Tensor | None = None
    seen: int = 0
    goes_on: bool = False
    unrecorded: TextSearch | None = None
    told: LastForward | None = None
    ready: dict[int, LayerMemory] | None = None
    fixed: FixedStep | None = None
    before: Callable[[], None] | None = None
    index: torch.Tensor | None = None
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    noted: dict[str, torch.Tensor] = field(default_factory=dict)
    leaving: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    turns: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    gates: dict[int, torch.Tensor] = field(default_factory=dict)
    entering: dict[int, torch.Tensor] = field(default_factory=dict)
    weights: bool = False
    aside: Aside | None = None
    said: torch.Tensor | None = None

    @property
    def search(self) -> TextSearch:
        """The search of its text."""
        if self.record is not None:
            return self.record.search
        if self.unrecorded is None:
            self.unrecorded = TextSearch()
        return self.unrecorded

    def read_nothing(self) -> None:
        """It goes on, or begins anew, without memory, and so does its text until it searches."""
        self.search.drop()
        self.recall = self.ready = self.before = self.index = None
        for noted in (self.states, self.leaving, self.gates, self.entering):
            noted.clear()

    def look(
        self, kwargs: dict[str, Any], mask: torch.Tensor | None, guard: int
    ) -> torch.Tensor | None:
        """Find out where its tokens stand, which of them are padding, and which may read.

        `mask` `[batch, tokens seen]` is 0 for padding, and the first `guard` tokens of a text never
        read. Returns the mask, taken from one that was prepared for the layers where nothing else
        is known.
        """
        batch, tokens = self.token_ids.shape
        record, given = self.record, kwargs.get("position_ids")
        if given is not None:
            self.position_ids = given.expand(batch, -1)
        else:
            places = torch.arange(tokens, device=self.token_ids.device) + self.seen
            self.position_ids = places.expand(batch, -1)
        # With a record the window itself knows what its rows hold.
        if mask is None and record is None:
            mask = _visible(kwargs.get("attention_mask"), self.seen + tokens)
        if mask is not None and tokens <= mask.shape[1]:
            self.new = mask[:, -tokens:].bool()
        # The first tokens of a text are attention sinks: everything leans on their states, and the
        # model has learnt them without a memory. What they read would be in every later token.
        padding = max(record.padding, default=0) if record is not None else 0
        if self.seen >= guard + padding and (record is not None or mask is None):
            return mask
        if mask is not None:
            self.query_mask = mask.long().cumsum(-1)[:, -tokens:] > guard
        else:
            at = torch.arange(self.seen, self.seen + tokens, device=self.token_ids.device)
            self.query_mask = (at >= guard).expand(batch, -1)
        return mask

    def columns(self, reach: bool) -> dict[str, torch.Tensor]:
        """What is noted of its tokens, `[batch, tokens, ...]` each.

        With `reach` also the furthest position, which rotations depend on that change with the
        length of a text: they are undone when blocks are stored.
        """
        found = {"token_ids": self.token_ids, "rope": self.position_ids, **self.noted}
        assert self.index is not None
        found["index"] = self.index
        found.update((f"state{n}", states) for n, states in self.states.items())
        if reach:
            found["reach"] = self.position_ids.max().expand_as(self.position_ids)
        return found


def require_rows(kwargs: dict[str, Any]) -> None:
    """Refuses a row that holds several texts, as continuous batching packs them."""
    if kwargs.get("cache") is not None and "cu_seq_lens_q" in kwargs:
        raise AttachError(
            "a text in each row expected, got several in one, as continuous batching packs "
            "them (generate_batch): call generate, a session a row, or pause() the memory"
        )


def padding_mask(kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The mask `[batch, tokens]` of a forward, 0 for padding; None where it has another or none."""
    mask = kwargs.get("attention_mask")
    return mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def goes_on(record: WindowRecord | None, request: Request, tokens: int) -> bool:
    """Whether the new tokens go on with a text, and ask nothing new."""
    # A single token does, and so do several in a `generate` whose prompt has asked already: those
    # are candidates that assisted decoding verifies.
    if record is None or not record.seen:
        return False
    asked = record.search.asked_for
    return tokens == 1 or (asked is not None and asked() is request)


def seen_before(cache: Any, position: torch.Tensor | None) -> int:
    """Tokens that a cache which is not ours has seen."""
    # In the first releases of transformers 5 a static cache counts its rows of zeros for empty
    # ones, and such are the keys of padding; but there the new tokens' places are given.
    if cache is None:
        return 0
    return int(cache.get_seq_length() if position is None else position[0])


def _visible(mask: Any, tokens: int) -> torch.Tensor | None:
    """`[batch, tokens]` bool of what the last token sees, from a mask prepared for the layers."""
    # Such masks are `[batch, 1, new, seen]`, bool or additive, or one of these a kind of layer.
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        return None
    last = mask[:, 0, -1, :tokens]
    return last if last.dtype == torch.bool else last == 0
