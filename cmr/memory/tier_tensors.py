"""The tensors of all tiers: index, keys and values of blocks, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.quantise import quantise_rows
from cmr.kernels.ring_link import Columns
from cmr.memory.allocation import (
    Allocate,
    LayerShape,
    Lower,
    OnDisk,
    Together,
    allocated,
    named,
    on_device,
    on_host,
)
from cmr.memory.journal import Journal
from cmr.memory.sessions import NO_SESSION
from cmr.memory.slot_ledger import SlotLedger
from cmr.memory.store.form import Kind, Part

NO_SLOT = -1


class TierTensors:
    """Blocks by slot, over one space of slots: floats in the upper tiers, codes in the last one.

    Args:
        slots: number of blocks that fit into the first tier, 1 or more.
        block_size: tokens in a block.
        hidden: width of the states at the index layer.
        layers: layer number (index into `hidden_states`) to what it stores.
        index_dtype: data type of the index vectors.
        device: device of the index and of the shared columns.
        lower: the tiers under the first one; None: there are none.
        journal: what changes are noted in, where others change together with the store.

    Attributes:
        journal: the same; every change of a store is made inside its `change`.
        ledger: who has which slot, on the host.
        keys: layer number to `[slots, heads, block_size, key_dim]`, of the first tier.
        values: the same of values; no entry where hidden states are stored.
        together: the same, as they are written.
        index: `[recent + working, block_size, hidden]` states at the index layer, of length
            1, or of what they weigh in a search where that is less (`BlockTurns`).
        codes: `[long_term, block_size, hidden]` int8 of the same, None without such a tier.
        scale: `[long_term, block_size]` float32, what to multiply the codes with.
        parts: for each tier its tensors by name, `[slots of the tier, ...]`, without the shared
            columns: `index`, or `codes` and `scale`; and `keys.4`, `values.4` of each layer kept.
        kinds: the forms in which blocks are kept.
        kind_of_tier: which of them each tier has.
        columns: what is known of each slot of all tiers, with the cursor on the device: blocks ever
            written. Numbers in `created` start at 1 and never come twice.
    """

    def __init__(
        self,
        *,
        slots: int,
        block_size: int,
        hidden: int,
        layers: Mapping[int, LayerShape],
        index_dtype: torch.dtype,
        device: torch.device,
        lower: Lower | None = None,
        journal: Journal | None = None,
    ) -> None:
        lower = lower or Lower()
        self.journal = journal or Journal()
        sizes = {"recent": slots, "working": lower.working, "long_term": lower.long_term}
        self.ledger = SlotLedger(sizes, self.journal)
        self.slots, self.block_size, self.device = self.ledger.slots, block_size, device
        self._layers = tuple(layers)
        self._disk = disk = OnDisk(lower.folder)
        how: dict[str, Allocate] = {"recent": on_device, "working": on_host, "long_term": disk}
        # Upper tiers share one index beside the model: a search looks at both in one go.
        self._floats = slots + lower.working
        self.index = on_device((self._floats, block_size, hidden), index_dtype, device)
        self.codes = self.scale = None
        self.parts: list[dict[str, torch.Tensor]] = []
        self.together: list[Together] = []
        self.kinds: list[Kind] = []
        self.kind_of_tier: list[int] = []
        for tier in self.ledger.tiers:
            parts = {"index": self.index[tier.first : tier.end]}
            if tier.name == "long_term":
                shape = (tier.slots, block_size)
                self.codes = disk((*shape, hidden), torch.int8, device)
                self.scale = disk(shape, torch.float32, device)
                parts = {"codes": self.codes, "scale": self.scale}
            if tier.name != "long_term" or lower.long_term_states:
                made = allocated(layers, tier.slots, block_size, how[tier.name])
                parts |= named(made)
                if tier.name == "recent":
                    self.together = made
            self.parts.append(parts)
            kind = "codes" if "codes" in parts else "full"
            if kind not in [known.name for known in self.kinds]:
                forms = {n: Part(t.dtype, tuple(t.shape[1:])) for n, t in parts.items()}
                self.kinds.append(Kind(kind, forms))
            self.kind_of_tier.append(len(self.kinds) - 1)
        recent = self.parts[0]
        self.keys = {n: recent[f"keys.{n}"] for n in layers}
        self.values = {n: recent[f"values.{n}"] for n in layers if f"values.{n}" in recent}
        self.columns = columns = _columns(self.slots, block_size, device)
        self.cursor, self.relevance = columns.cursor, columns.relevance
        self.token_ids, self.positions = columns.token_ids, columns.positions
        self.session, self.created = columns.session, columns.created
        self.successor, self.predecessor = columns.successor, columns.predecessor
        self.last_access, self.access_count = columns.last_access, columns.access_count

    def rows(self, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """Copies of the parts of some blocks of one tier, `[n, ...]`; slots on the CPU."""
        tier = self.ledger.tier_of(int(slots[0]))
        at = slots - self.ledger.tiers[tier].first
        return {name: part[at.to(part.device)] for name, part in self.parts[tier].items()}

    def put(self, slots: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> None:
        """Write parts of some blocks into slots (on the CPU) of one tier, as that tier keeps them.

        Raises ValueError where a part of the tier is missing.
        """
        number = self.ledger.tier_of(int(slots[0]))
        tier, parts = self.ledger.tiers[number], self.parts[number]
        # Whatever comes from or goes to a disk is made smaller or larger here and nowhere else.
        rows = dict(rows)
        if "codes" in parts and "codes" not in rows:
            rows["codes"], rows["scale"] = quantise_rows(rows["index"], torch.int8)
        if "index" in parts and "index" not in rows:
            rows["index"] = _floats(rows["codes"], rows["scale"])
        missing = sorted(parts.keys() - rows.keys())
        if missing:
            raise ValueError(
                f"tier {tier.name!r}: parts {sorted(parts)} expected, {missing} missing"
            )
        at = slots - tier.first
        for name, part in parts.items():
            part[at.to(part.device)] = rows[name].to(part.device, part.dtype)

    def zero(self, slots: torch.Tensor) -> None:
        """Zero the parts of some blocks, `[n]` int64 slots on the CPU."""
        for tier, parts in zip(self.ledger.tiers, self.parts, strict=True):
            here = slots[tier.holds(slots)] - tier.first
            for part in parts.values() if len(here) else ():
                part.index_fill_(0, here.to(part.device), 0)

    # -- reading ---------------------------------------------------------------------------------

    def maxima(
        self,
        query: torch.Tensor,
        sessions: torch.Tensor,
        first: int,
        last: int,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """How well each query token matches the best token of each block; see `block_maxima`.

        `query` `[batch, tokens, hidden]` are unit states in the index's dtype, and blocks of other
        `sessions` `[batch]` are `-inf`. Slots from `first` to before `last` are looked at; gives
        `[batch, tokens, last - first]` float32, written into `out` where that is given.
        """
        if out is None:
            out = torch.empty(*query.shape[:2], last - first, device=self.device)
        edge = min(max(first, self._floats), last)
        if first < edge:
            at = slice(first, edge)
            block_maxima(
                query,
                self.index[at],
                self.positions[at],
                session=self.session[at],
                sessions=sessions,
                out=out[..., : edge - first],
            )
        if edge < last:
            out[..., edge - first :] = self._code_maxima(query, sessions, slice(edge, last))
        return out

    def maxima_at(
        self, query: torch.Tensor, sessions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The same of some blocks only: `slots` `[batch, some]` int64, -1 for none.

        Gives `[batch, tokens, some]` float32, `-inf` where there is no block.
        """
        upper = torch.where(slots < self._floats, slots, -1)
        held = slice(0, self._floats)
        found = block_maxima(
            query,
            self.index,
            self.positions[held],
            session=self.session[held],
            sessions=sessions,
            slots=upper,
        )
        if self.codes is not None and bool((slots > upper).any()):
            lower = torch.where(slots >= self._floats, slots - self._floats, -1)
            at = slice(self._floats, self.slots)
            found = torch.maximum(found, self._code_maxima(query, sessions, at, lower))
        return found

    def _code_maxima(
        self,
        query: torch.Tensor,
        sessions: torch.Tensor,
        at: slice,
        slots: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The same of slots of the long-term tier, where its codes are: on the CPU."""
        assert self.codes is not None and self.scale is not None
        local, where = slice(at.start - self._floats, at.stop - self._floats), self.codes.device
        found = block_maxima(
            query.to(where, torch.float32),
            self.codes[local],
            self.positions[at].to(where),
            scale=self.scale[local],
            session=self.session[at].to(where),
            sessions=sessions.to(where),
            slots=None if slots is None else slots.to(where),
        )
        return found.to(self.device)

    def gather(
        self, layer: int, table: torch.Tensor, columns: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys and values of a table `[batch, blocks]` of slots of the first tier, below 0: zeros.

        `[batch, heads, blocks * block_size, dim]` each; values are None for stored states.
        `columns` `[batch, n]` int64: only these tokens of each row, in this order.
        """
        keys, values = self.keys[layer], self.values.get(layer)
        if columns is None and keys.device.type != "cpu":
            return _gathered(keys, table), None if values is None else _gathered(values, table)
        at = _at(table.to(keys.device), columns, *keys.shape[1:3])
        return _picked(keys, *at), None if values is None else _picked(values, *at)

    def gather_anywhere(
        self, layer: int, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same of blocks in any tier, with a table on the CPU; those not kept are left at 0."""
        found: list[torch.Tensor | None] = [None, None]
        device = self.keys[layer].device
        for tier, parts in zip(self.ledger.tiers, self.parts, strict=True):
            here = tier.holds(table)
            # The first tier is always looked at: it gives the shape, and zeros where nothing is.
            if f"keys.{layer}" not in parts or (found[0] is not None and not here.any()):
                continue
            local = torch.where(here, table - tier.first, 0)
            mask = here.repeat_interleave(self.block_size, dim=1)[:, None, :, None].to(device)
            for i, name in enumerate((f"keys.{layer}", f"values.{layer}")):
                if name in parts:
                    before = found[i]
                    own = _gathered(parts[name], local).to(device, non_blocking=True)
                    found[i] = torch.where(mask, own, 0 if before is None else before)
        assert found[0] is not None
        return found[0], found[1]

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Unit states at the index layer, `[n, block_size, hidden]`; slots `[n]` on the CPU."""
        out = self.index.new_empty(len(slots), *self.index.shape[1:])
        for tier, parts in zip(self.ledger.tiers, self.parts, strict=True):
            here = tier.holds(slots)
            if here.any():
                at = slots[here] - tier.first
                if "index" in parts:
                    rows = parts["index"][at.to(self.device)]
                else:
                    rows = _floats(parts["codes"][at], parts["scale"][at])
                out[here.to(self.device)] = rows.to(out)
        return out

    def blank(self, slots: torch.Tensor) -> torch.Tensor:
        """Which tokens of some blocks no search ever matches, `[*slots, block_size]` bool.

        The first token of a text is indexed as zeros: as an attention sink its state says nothing
        of the text. The slots are on the index's device, of any shape, none below 0; the host waits
        for them. Where all that is stored lies in the first tier, `index` itself says it.
        """
        states = self.states(slots.flatten().cpu())
        return (states == 0).all(-1).view(*slots.shape, self.block_size)

    def far(self, slots: torch.Tensor) -> bool:
        """Whether states of any of these slots (on the CPU) are on a disk, or in host memory."""
        return any(
            (tier.name == "long_term" or self.device.type != "cpu")
            and self._keeps(number)
            and bool(tier.holds(slots).any())
            for number, tier in enumerate(self.ledger.tiers[1:], start=1)
        )

    def keeps_states(self, slots: torch.Tensor) -> torch.Tensor:
        """Which blocks' keys and values (or states) are stored, a bool for each slot on the CPU."""
        keeps = torch.zeros(slots.shape, dtype=torch.bool)
        for number, tier in enumerate(self.ledger.tiers):
            if self._keeps(number):
                keeps |= tier.holds(slots)
        return keeps

    def _keeps(self, tier: int) -> bool:
        return any(f"keys.{layer}" in self.parts[tier] for layer in self._layers)


def _columns(slots: int, block_size: int, device: torch.device) -> Columns:
    def full(*shape: int, value: int = 0) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.int64, device=device)

    return Columns(
        cursor=full(1),
        session=full(slots, value=NO_SESSION),
        created=full(slots),
        successor=full(slots, value=NO_SLOT),
        predecessor=full(slots, value=NO_SLOT),
        last_access=full(slots),
        access_count=full(slots),
        relevance=torch.zeros(slots, device=device),
        token_ids=on_device((slots, block_size), torch.int64, device),
        positions=full(slots, block_size, value=-1),
    )


def _gathered(tensor: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows of `[slots, heads, size, dim]` by a table, side by side: `[batch, heads, ..., dim]`."""
    table = table.to(tensor.device)
    rows, blocks = table.shape
    _, heads, size, width = tensor.shape
    # Slot 0 stands in for "none" and is blanked afterwards: a mask costs no wait for the device,
    # choosing the rows that are there would.
    picked = tensor.index_select(0, table.clamp(min=0).reshape(-1))
    picked = picked.view(rows, blocks, heads, size, width)
    picked = picked.masked_fill_((table < 0)[..., None, None, None], 0)
    return picked.transpose(1, 2).reshape(rows, heads, blocks * size, width)


def _at(
    table: torch.Tensor, columns: torch.Tensor | None, heads: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the tokens of `gather` lie among `[slots * heads * size]`, and which are none.

    `[batch, heads, n]` int64 and `[batch, 1, n, 1]` bool.
    """
    device = table.device
    if columns is None:
        columns = torch.arange(table.shape[1] * size, device=device).expand(len(table), -1)
    columns = columns.to(device)
    slots = table.gather(1, columns // size)[:, None]
    at = (slots.clamp(min=0) * heads + torch.arange(heads, device=device)[:, None]) * size
    return at + (columns % size)[:, None], (slots < 0)[..., None]


def _picked(tensor: torch.Tensor, at: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
    """Tokens of `[slots, heads, size, dim]` by their places, copied once."""
    width = tensor.shape[-1]
    picked = tensor.view(-1, width).index_select(0, at.view(-1)).view(*at.shape, width)
    return picked.masked_fill_(none, 0) if bool(none.any()) else picked


def _floats(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Unit states that codes stand for."""
    return torch.nn.functional.normalize(codes.float() * scale[..., None], dim=-1)
