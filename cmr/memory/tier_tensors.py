"""The tensors of all tiers: index, keys and values of blocks, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.quantise import quantise_rows
from cmr.memory.batch import Lower
from cmr.memory.layer_tensors import LayerShape, LayerStores, on_device, on_disk, on_host
from cmr.memory.slot_ledger import SlotLedger


class TieredStores:
    """Blocks by slot, over one space of slots: floats in the upper tiers, codes in the last one.

    Args:
        slots: number of blocks that fit into the first tier.
        block_size: tokens in a block.
        hidden: width of the states at the index layer.
        layers: layer number to what it stores.
        index_dtype: data type of the index vectors.
        device: device of the index.
        lower: the tiers under the first one.

    Attributes:
        ledger: who has which slot, on the host.
        keys: layer number to `[slots, heads, block_size, key_dim]`, of the first tier.
        values: the same of values; no entry where hidden states are stored.
        index: `[recent + working, block_size, hidden]` unit states at the index layer.
        codes: `[long_term, block_size, hidden]` int8 of the same, None without such a tier.
        scale: `[long_term, block_size]` float32, what to multiply the codes with.
    """

    positions: torch.Tensor
    session: torch.Tensor

    def __init__(
        self,
        *,
        slots: int,
        block_size: int,
        hidden: int,
        layers: Mapping[int, LayerShape],
        index_dtype: torch.dtype,
        device: torch.device,
        lower: Lower,
    ) -> None:
        sizes = {"recent": slots, "working": lower.working, "long_term": lower.long_term}
        self.ledger = ledger = SlotLedger(sizes)
        self.slots, self.block_size, self.device = ledger.slots, block_size, device
        disk = on_disk(lower.folder)
        how = {"recent": on_device, "working": on_host, "long_term": disk}
        self._stores = [
            LayerStores(
                tier.slots,
                block_size,
                layers if tier.name != "long_term" or lower.long_term_states else {},
                how[tier.name],
            )
            for tier in ledger.tiers
        ]
        self.keys, self.values = self._stores[0].keys, self._stores[0].values
        self._floats = slots + lower.working
        self.index = on_device((self._floats, block_size, hidden), index_dtype, device)
        self.codes = self.scale = None
        if lower.long_term:
            shape = (lower.long_term, block_size)
            self.codes = disk((*shape, hidden), torch.int8, device)
            self.scale = disk(shape, torch.float32, device)

    def parts(self, tier: int) -> dict[str, torch.Tensor]:
        """The tensors of a tier by name, `[slots of the tier, ...]`, without the shared columns.

        `index`, or `codes` and `scale`; and `keys.4`, `values.4` for each layer that it keeps.
        """
        at = self.ledger.tiers[tier]
        if self.codes is not None and self.scale is not None and at.first >= self._floats:
            index = {"codes": self.codes, "scale": self.scale}
        else:
            index = {"index": self.index[at.first : at.end]}
        return index | self._stores[tier].parts()

    def rows(self, tier: int, at: torch.Tensor) -> dict[str, torch.Tensor]:
        """Copies of the parts of some blocks of a tier, `[n, ...]`, `at` counted within it."""
        return {name: part[at.to(part.device)] for name, part in self.parts(tier).items()}

    def put(self, tier: int, at: torch.Tensor, rows: Mapping[str, torch.Tensor]) -> None:
        """Write parts of some blocks into a tier; an index changes between floats and codes.

        Raises:
            ValueError: a part of the tier is missing.
        """
        parts = self.parts(tier)
        rows = dict(rows)
        if "codes" in parts and "codes" not in rows:
            rows["codes"], rows["scale"] = quantise_rows(rows["index"], torch.int8)
        if "index" in parts and "index" not in rows:
            rows["index"] = _floats(rows["codes"], rows["scale"])
        missing = sorted(parts.keys() - rows.keys())
        if missing:
            name = self.ledger.tiers[tier].name
            raise ValueError(f"tier {name!r}: parts {sorted(parts)} expected, {missing} missing")
        for name, part in parts.items():
            part[at.to(part.device)] = rows[name].to(part.device, part.dtype)

    def zero(self, slots: torch.Tensor) -> None:
        """Zero the parts of some blocks, `[n]` int64 slots on the CPU."""
        for number, tier in enumerate(self.ledger.tiers):
            here = slots[tier.holds(slots)] - tier.first
            for part in self.parts(number).values() if len(here) else ():
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
        """How well each query token matches the best token of each block, see `block_maxima`.

        Args:
            query: `[batch, tokens, hidden]` unit states in the index's dtype.
            sessions: `[batch]` int64; blocks of others are `-inf`.
            first: the first slot to look at.
            last: the slot behind the last one.
            out: `[batch, tokens, last - first]` float32 to write into; None: a new one.
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
            out[..., edge - first :] = self._code_maxima(query, sessions, edge, last)
        return out

    def _code_maxima(
        self, query: torch.Tensor, sessions: torch.Tensor, first: int, last: int
    ) -> torch.Tensor:
        """The same of the long-term tier, where its codes are: on the CPU."""
        assert self.codes is not None and self.scale is not None
        at, local = slice(first, last), slice(first - self._floats, last - self._floats)
        found = block_maxima(
            query.to(self.codes.device, torch.float32),
            self.codes[local],
            self.positions[at].to(self.codes.device),
            scale=self.scale[local],
            session=self.session[at].to(self.codes.device),
            sessions=sessions.to(self.codes.device),
        )
        return found.to(self.device)

    def maxima_at(
        self, query: torch.Tensor, sessions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The same of some blocks only, wherever they lie.

        Args:
            query: `[batch, tokens, hidden]` in the index's dtype; unit states, or what stands for
                them.
            sessions: `[batch]` int64; blocks of others are `-inf`.
            slots: `[batch, some]` int64 slots, -1 for none.

        Returns:
            `[batch, tokens, some]` float32, `-inf` where there is no block.
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
        if self.codes is not None and self.scale is not None and bool((slots > upper).any()):
            lower = torch.where(slots >= self._floats, slots - self._floats, -1)
            where = self.codes.device
            coded = block_maxima(
                query.to(where, torch.float32),
                self.codes,
                self.positions[self._floats :].to(where),
                scale=self.scale,
                session=self.session[self._floats :].to(where),
                sessions=sessions.to(where),
                slots=lower.to(where),
            )
            found = torch.maximum(found, coded.to(found.device))
        return found

    def gather(self, layer: int, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Keys and values of a block table of the first tier.

        Args:
            layer: layer number.
            table: `[batch, blocks]` int64 slots; entries below 0 give zeros.

        Returns:
            `[batch, heads, blocks * block_size, dim]` each; values are None for stored states.
        """
        return self._gather(self._stores[0], layer, table)

    def gather_anywhere(
        self, layer: int, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same of blocks in any tier; those that keep none are left at 0.

        Args:
            layer: layer number.
            table: `[batch, blocks]` int64 slots on the CPU.
        """
        found: list[torch.Tensor | None] = [None, None]
        for tier, stores in zip(self.ledger.tiers, self._stores, strict=True):
            here = tier.holds(table)
            if layer not in stores.keys or (found[0] is not None and not here.any()):
                continue
            parts = self._gather(stores, layer, torch.where(here, table - tier.first, 0))
            mask = here.repeat_interleave(self.block_size, dim=1)[:, None, :, None]
            for i, part in enumerate(parts):
                if part is None:
                    continue
                before, own = found[i], part.to(self.keys[layer].device, non_blocking=True)
                mask = mask.to(own.device)
                found[i] = torch.where(mask, own, 0 if before is None else before)
        assert found[0] is not None
        return found[0], found[1]

    def _gather(
        self, held: LayerStores, layer: int, table: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        stores = [held.keys[layer]] + ([held.values[layer]] if layer in held.values else [])
        table = table.to(stores[0].device)
        where, nothing = table.clamp(min=0), (table < 0)[..., None, None, None]
        rows, blocks = where.shape
        out = []
        for store in stores:
            picked = store.index_select(0, where.reshape(-1))
            picked = picked.view(rows, blocks, *store.shape[1:]).masked_fill_(nothing, 0)
            picked = picked.transpose(1, 2)
            out.append(picked.reshape(rows, store.shape[1], blocks * self.block_size, -1))
        return out[0], out[1] if len(out) > 1 else None

    def states(self, slots: torch.Tensor) -> torch.Tensor:
        """Unit states at the index layer of some blocks of any tier, `[n, block_size, hidden]`.

        Args:
            slots: `[n]` int64 on the CPU.
        """
        out = self.index.new_empty(len(slots), *self.index.shape[1:])
        for number, tier in enumerate(self.ledger.tiers):
            here = tier.holds(slots)
            if here.any():
                parts, at = self.parts(number), slots[here] - tier.first
                if "index" in parts:
                    rows = parts["index"][at.to(self.device)]
                else:
                    rows = _floats(parts["codes"][at], parts["scale"][at])
                out[here.to(self.device)] = rows.to(out)
        return out

    def blank(self, slots: torch.Tensor) -> torch.Tensor:
        """Which tokens of some blocks are indexed as zeros, so that no search ever matches them.

        The first token of a text is: its state says nothing of the text. Where all that is stored
        lies in the first tier nothing waits for the device.

        Args:
            slots: int64 of any shape on the index's device, none below 0.

        Returns:
            `[*slots, block_size]` bool.
        """
        flat = slots.flatten()
        states = self.states(flat.cpu()) if self.ledger.below(0) else self.index[flat]
        return (states == 0).all(-1).view(*slots.shape, self.block_size)

    def far(self, slots: torch.Tensor) -> bool:
        """Whether states of any of these blocks are on a disk, or beside another device.

        Args:
            slots: int64 of any shape on the CPU, -1 for none.
        """
        for tier, stores in zip(self.ledger.tiers[1:], self._stores[1:], strict=True):
            away = tier.name == "long_term" or self.device.type != "cpu"
            if stores.keys and away and bool(tier.holds(slots).any()):
                return True
        return False

    def keeps_states(self, slots: torch.Tensor) -> torch.Tensor:
        """Which blocks' keys and values (or states) are stored, a bool for each slot on the CPU."""
        keeps = torch.zeros(slots.shape, dtype=torch.bool)
        for tier, stores in zip(self.ledger.tiers, self._stores, strict=True):
            if stores.keys:
                keeps |= tier.holds(slots)
        return keeps


def _floats(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Unit states that codes stand for."""
    return torch.nn.functional.normalize(codes.float() * scale[..., None], dim=-1)
