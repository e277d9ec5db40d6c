"""A saved memory back into the store of an attached one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cmr.errors import ConfigError, CorruptMemoryError, SessionNameError, UnknownSessionError
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.core import Core
from cmr.integration.decoder import fingerprint
from cmr.integration.files.texts import from_header
from cmr.memory.sessions import SessionInfo
from cmr.memory.store import Saved
from cmr.memory.store.checked import check_rows
from cmr.memory.store.form import DTYPES


class Loaded(NamedTuple):
    """What was taken in: how many blocks, and for each number here the one it was saved under.

    `blocks` None: they kept theirs.
    """

    total: int
    sessions: dict[int, int]
    blocks: dict[int, int] | None


class Loader:
    """Checks a saved memory against a store, then takes the blocks of some sessions in (None: all).

    Where the store is empty and laid out alike, every block comes back into its slot under its
    number, so that all that follows is bit for bit what it would have been. Otherwise blocks are
    new ones in the tier of the same name (`recent`, where there is no `working`) or a lower one.
    Room for them is made as for new text. What is refused is told at `Memory.load`.

    Attributes:
        exact: whether blocks come back into their slots under their numbers.
        numbers: numbers that the sessions wanted had; None: all.
    """

    def __init__(self, core: Core, saved: Saved, sessions: Sequence[str] | None) -> None:
        self._core, self._blocks, self._saved = core, core.ring, saved
        self._infos = _sessions(saved)
        self._names = list(self._infos) if sessions is None else list(sessions)
        self._whole = sessions is None
        for name in self._names:
            if name not in self._infos:
                raise UnknownSessionError(
                    f"no session {name!r} among the {len(self._infos)} in {saved.path}"
                )
        self._chosen = [self._infos[name] for name in self._names]
        self._check_names()
        self._check_adapters()
        self._check_forms()
        self._check_ids()
        numbers = torch.tensor([info.number for info in self._chosen], dtype=torch.int64)
        self.numbers = None if sessions is None else numbers.tolist()
        self._at = torch.isin(saved.session, numbers).nonzero()[:, 0]
        self._find_room()
        self._learnt = self._check_learnt()

    # -- checks ----------------------------------------------------------------------------------

    def _check_names(self) -> None:
        table = self._core.table
        for name in self._names:
            if table.find(name) >= 0:
                raise SessionNameError(
                    f"there is a session named {name!r} already: rename or end it"
                )
        table.check_room(self._names)

    def _check_adapters(self) -> None:
        here = fingerprint.adapters(self._core.adapter.model)
        read = {entry["name"]: entry["adapters"] for entry in self._saved.header["sessions"]}
        for info in self._chosen:
            fingerprint.require_same_adapters(info.name, read[info.name], here)

    def _find_room(self) -> None:
        """Decides where the blocks go: for each tier, their positions in what is saved."""
        blocks, saved = self._blocks, self._saved
        here = [tier.name for tier in blocks.ledger.tiers]
        sizes = [[tier.name, tier.slots] for tier in blocks.ledger.tiers]
        there = saved.header["tiers"]
        empty = blocks.high_water == 0 and blocks.clock == 0
        self.exact = empty and there == sizes and self._whole
        where = [here.index(name) if name in here else 0 for name, _ in there]
        into = torch.tensor(where, dtype=torch.int64)
        # The newest have the first claim to a tier, as they would have had if read just now.
        newest = self._at[saved.numbers[self._at].argsort(descending=True)]
        tiers = into[saved.columns["tier"][newest]]
        self._plan = [newest[tiers == tier] for tier in range(len(here))]
        if not self.exact:
            self._plan, left = self._core.keeper.plan(self._plan)
            if left:
                raise ConfigError(
                    f"budget: room for {len(newest)} blocks of {saved.path} expected, "
                    f"for {len(newest) - left} it could be made"
                )

    def _check_ids(self) -> None:
        ids, vocabulary = self._saved.columns["token_ids"], self._core.adapter.config.vocab_size
        if len(ids) and int(ids.max()) >= vocabulary:
            raise CorruptMemoryError(
                f"{self._saved.path}: 'token_ids' holds values out of range: ids below "
                f"{vocabulary} expected, got {int(ids.max())}"
            )

    def _check_learnt(self) -> dict[str, torch.Tensor]:
        """What the scorer had learnt, tried on one that is thrown away."""
        core, path = self._core, self._saved.path
        learnt = {
            name: torch.tensor(values, dtype=DTYPES[dtype]).view(shape)
            for name, (dtype, shape, values) in self._saved.header["scorer"].items()
        }
        try:
            BlockScorer(core.adapter, core.config, core.layout.index_layer).load_state(learnt)
        except ValueError as error:
            raise CorruptMemoryError(f"{path}: scorer: {error}") from None
        return learnt

    def _check_forms(self) -> None:
        if self._saved.header["index"] != self._core.index_digest:
            raise ConfigError(
                f"calibration: that of {self._saved.path} expected, got another one: what they "
                "index cannot be compared"
            )
        stored, store = self._saved.header["store"], self._core.layout.store
        if stored != store:
            raise ConfigError(f"store: {stored!r} expected, as saved, got {store!r}")
        indexed, searched = self._saved.header["index_layer"], self._core.layout.index_layer
        if indexed != searched:
            raise ConfigError(
                f"index_layer: {indexed} expected, whose states {self._saved.path} indexes, "
                f"got {searched}"
            )
        here = {kind.name: kind.parts for kind in self._blocks.kinds}
        used = set(self._saved.kind.tolist())
        for number, kind in enumerate(self._saved.kinds):
            if number not in used:
                continue
            if kind.name not in here:
                raise ConfigError(
                    f"long_term_budget: above 0 expected, as blocks of {self._saved.path} are in "
                    "the tier 'long_term'"
                )
            if dict(kind.parts) != dict(here[kind.name]):
                raise ConfigError(
                    f"{self._saved.path} stores {_described(kind.parts)}, this memory "
                    f"{_described(here[kind.name])}: settings as saved expected"
                )

    # -- taking in -------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """Take the blocks in, or raise as the checks do where room or a name was taken since."""
        # The lock was free while the checksums were counted.
        self._check_names()
        self._find_room()
        with self._core.journal.change():
            return self._load()

    def _load(self) -> Loaded:
        saved, blocks, ledger, core = self._saved, self._blocks, self._blocks.ledger, self._core
        numbers = {info.number: core.table.restore(info) for info in self._chosen}
        slots = torch.full((len(saved),), -1, dtype=torch.int64)
        born = saved.numbers[self._at]
        if self.exact:
            # Slot by slot as it was: all that follows is bit for bit what it would have been.
            slots[self._at] = saved.columns["slot"][self._at]
            blocks.claim(slots[self._at])
            blocks.count_on(saved.header["clock"])
        else:
            # From the last tier up: what sinks must not take the room that was just made.
            for tier in reversed(range(len(self._plan))):
                mine = self._plan[tier].sort().values
                if not len(mine):
                    continue
                owners = Counter(numbers[n] for n in saved.session[mine].tolist())
                core.keeper.room_in(tier, owners)
                slots[mine] = blocks.take(tier, len(mine))
            rank = torch.empty_like(born)
            rank[born.argsort()] = torch.arange(len(born))
            born = blocks.new_numbers(len(born))[rank]
        for batch in saved.batches([info.number for info in self._chosen]):
            check_rows(saved, batch)
            at = slots[batch.positions]
            for held in ledger.tiers:
                here = held.holds(at)
                if here.all():
                    blocks.put(at, batch.parts)
                elif here.any():
                    parts = {name: part[here] for name, part in batch.parts.items()}
                    blocks.put(at[here], parts)
        self._columns(slots, born, numbers)
        for entry in saved.header["sessions"]:
            if (there := entry["number"]) in numbers:
                texts = {next(core.table.text_keys): text for text in from_header(saved, entry)}
                core.table.note_texts(numbers[there], texts)
        if self.exact:
            core.journal.attributes(ledger, "limit")
            ledger.limit = max(ledger.limit, saved.header["limit"])
            learnt = core.scorer.state()
            core.journal.note(lambda: core.scorer.load_state(learnt))
            core.scorer.load_state(self._learnt)
        before = saved.numbers[self._at].tolist()
        return Loaded(
            len(self._at),
            {here: number for number, here in numbers.items()},
            None if self.exact else dict(zip(born.tolist(), before, strict=True)),
        )

    def _columns(self, slots: torch.Tensor, born: torch.Tensor, numbers: dict[int, int]) -> None:
        saved, blocks, at = self._saved, self._blocks, self._at
        here = slots[at].to(blocks.device)
        owners = [numbers[number] for number in saved.session[at].tolist()]
        for name in ("token_ids", "positions", "access_count", "relevance"):
            column = getattr(blocks, name)
            column[here] = saved.columns[name][at].to(column)
        # The clock there is not the clock here: a block under a new number was never recalled.
        last = saved.columns["last_access"][at]
        blocks.last_access[here] = (last if self.exact else last.clamp(max=0)).to(blocks.device)
        blocks.session[here] = torch.tensor(owners, dtype=torch.int64, device=blocks.device)
        blocks.created[here] = born.to(blocks.device)
        of_number = dict(zip(saved.numbers[at].tolist(), slots[at].tolist(), strict=True))
        before = [of_number.get(number, -1) for number in saved.columns["before"][at].tolist()]
        ahead = torch.tensor(before, dtype=torch.int64)
        blocks.predecessor[here] = ahead.to(blocks.device)
        linked = ahead >= 0
        blocks.successor[here] = -1
        blocks.successor[ahead[linked].to(blocks.device)] = here[linked.to(blocks.device)]
        order = born.argsort()
        blocks.ledger.fill(
            slots[at][order],
            [owners[i] for i in order.tolist()],
            born[order],
            saved.columns["time"][at][order],
        )
        for entry in saved.header["sessions"]:
            # Not said in older versions: there it is the newest block.
            if entry["number"] in numbers and entry["last"] is not None:
                follows = of_number.get(entry["last"], -1)
                blocks.ledger.follow(numbers[entry["number"]], follows)
        blocks.ledger.let_expire(slots[at], saved.columns["deadline"][at])
        blocks.ledger.pinned[slots[at]] = saved.columns["flags"][at] > 0


def _sessions(saved: Saved) -> dict[str, SessionInfo]:
    return {
        entry["name"]: SessionInfo(
            entry["name"],
            entry["number"],
            entry["position"],
            ttl=entry["ttl"],
            adapters=tuple(sorted(entry["adapters"])),
            uids=tuple(entry["uids"]),
        )
        for entry in saved.header["sessions"]
    }


def _described(parts: Any) -> str:
    layers = sorted(int(name.split(".")[1]) for name in parts if name.startswith("keys."))
    index = parts.get("index") or parts.get("codes")
    what = f"an index of {list(index.shape)} {index.dtype}" if index else "no index"
    return f"{what} and layers {layers}" if layers else what
