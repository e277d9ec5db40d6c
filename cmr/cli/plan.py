"""``cmr plan``: what a memory for so many sessions takes, and the settings for it."""

from __future__ import annotations

import json as notation
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Column, Table

from cmr.cli.display import console, size
from cmr.cli.errors import UsageError
from cmr.cli.settings import Settings
from cmr.cli.stored import SMALL
from cmr.config import CMRConfig
from cmr.config.topics import size as byte_count
from cmr.demo import conversion, load_smollm2, smollm2
from cmr.integration.blueprint import Blueprint, blueprint
from cmr.integration.footprint import DISK, TierFootprint, footprint
from cmr.integration.layout import Layout, plan_layout
from cmr.memory.allocation import Lower

BESIDE, HOST = "beside the model", "in host memory"


@dataclass(frozen=True)
class Wanted:
    """What is to be remembered, and what there is for it; `budgets` are settings, as given."""

    model: str | None
    sessions: int
    tokens: int
    device_memory: int | None
    budgets: dict[str, Any]

    @classmethod
    def parse(
        cls,
        *,
        model: str | None,
        sessions: int,
        tokens: int,
        device_memory: str | None,
        **budgets: str | None,
    ) -> Wanted:
        """Check what the option parser cannot."""
        given = {name: value for name, value in budgets.items() if value is not None}
        if device_memory is not None and given:
            first = next(iter(given)).replace("_", "-")
            raise UsageError(f"--device-memory chooses the budgets: not together with --{first}")
        most = None
        if device_memory is not None:
            try:
                most = byte_count(device_memory)
            except ValueError as error:
                raise UsageError(f"--device-memory: {error}") from None
        checked = Settings.parse(model=model, session=None, max_new_tokens=1, load=None, save=None,
                                 force=False, key_file=None, memory_weight=None,
                                 **given)  # fmt: skip
        return cls(model, sessions, tokens, most, checked.overrides)


@dataclass(frozen=True)
class Plan:
    """What is needed and what is had, in blocks of `block` tokens; `settings` ask for it."""

    model: str
    block: int
    needed: int
    tiers: list[TierFootprint]
    settings: dict[str, int]

    @property
    def room(self) -> int:
        """Blocks that all tiers hold."""
        return sum(tier.blocks for tier in self.tiers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: bytes everywhere."""
        tiers = {
            tier.name: {
                "blocks": tier.blocks,
                "tokens": tier.blocks * self.block,
                "states": tier.states.total(),
                "index": tier.index.total(),
                "columns": tier.columns.total(),
                "bytes": tier.nbytes,
            }
            for tier in self.tiers
        }
        return {
            "model": self.model,
            "block_size": self.block,
            "needed_tokens": self.needed * self.block,
            "room_tokens": self.room * self.block,
            "fits": self.room >= self.needed,
            "tiers": tiers,
            "places": dict(placed(self.tiers)),
            "settings": self.settings,
        }


def placed(tiers: list[TierFootprint]) -> Counter[str]:
    """Bytes by where they lie, the ledger's with them: `BESIDE`, `HOST`, `DISK`."""
    named, found = {"cpu": HOST, DISK: DISK}, Counter[str]()
    for tier in tiers:
        for where, taken in tier.places.items():
            found[named.get(where, BESIDE)] += taken
    return found


def plan(wanted: Wanted) -> Plan:
    """The plan; raises `UsageError` for a model without sizes, or where there is no way."""
    known = _known(wanted.model)

    def laid_out(settings: dict[str, Any]) -> tuple[Layout, list[TierFootprint]]:
        config = CMRConfig().with_overrides(**settings)
        layout = plan_layout(known.adapter, config, known.calibration)
        device = known.adapter.device(layout.index_layer)
        return layout, footprint(layout, block, device)

    block = CMRConfig().memory.block_size
    # Each session's text ends in a block of its own.
    a_session = math.ceil(wanted.tokens / block)
    needed = wanted.sessions * a_session
    settings = wanted.budgets
    if not settings:
        layout, _ = laid_out({})
        device = known.adapter.device(layout.index_layer)
        one = replace(layout, recent=1, lower=replace(layout.lower, working=1, long_term=1))
        each = {tier.name: placed([tier])[BESIDE] for tier in footprint(one, block, device)}
        settings = _budgets(each, needed, a_session, wanted.device_memory, block)
    layout, tiers = laid_out(settings)
    lower: Lower = layout.lower
    sizes = {"budget": layout.recent, "working_budget": lower.working,
             "long_term_budget": lower.long_term}  # fmt: skip
    asked = {name: blocks * block for name, blocks in sizes.items() if blocks or name == "budget"}
    return Plan(wanted.model or SMALL, block, needed, tiers, asked)


def _known(model: str | None) -> Blueprint:
    if model is not None:
        return blueprint(model)
    if not smollm2.is_cached():
        load_smollm2()
    return blueprint(str(smollm2.cache_folder(smollm2.find_gguf())), conversion.quick_dtype())


def _budgets(
    each: dict[str, int], needed: int, least: int, most: int | None, block: int
) -> dict[str, Any]:
    """Budgets in tokens for `needed` blocks, of which `most` bytes may lie beside the model.

    `each` has a block's bytes there by tier. The quickest tiers that fit are taken: the first tier
    alone, the first two, or the first and the last; `least` blocks are in the first.
    """
    if most is None or needed * each["recent"] <= most:
        return {"budget": needed * block}
    for tier in ("working", "long_term"):
        recent = (most - needed * each[tier]) // (each["recent"] - each[tier])
        if recent >= least:
            return {"budget": recent * block, f"{tier}_budget": (needed - recent) * block}
    lowest = least * each["recent"] + (needed - least) * each["long_term"]
    raise UsageError(f"--device-memory: at least {lowest:,} bytes expected, for one session in "
                     "the first tier and what is known of the blocks of all others, "
                     f"got {most:,}")  # fmt: skip


def run(wanted: Wanted, json: bool) -> None:
    """Print the plan."""
    found, out = plan(wanted), console()
    if json:
        print(notation.dumps(found.to_dict()))
        return
    columns = ("blocks", "tokens", "states", "index", "the rest", "bytes")
    table = Table("tier", *(Column(name, justify="right") for name in columns), box=None)
    for tier in found.tiers:
        parts = [part.total() for part in (tier.states, tier.index, tier.columns)]
        table.add_row(tier.name, f"{tier.blocks:,}", f"{tier.blocks * found.block:,}",
                      *map(size, parts), size(tier.nbytes))  # fmt: skip
    out.print(f"{found.model}, {wanted.sessions:,} sessions of {wanted.tokens:,} tokens")
    out.print(table)
    out.print(", ".join(f"{size(taken)} {place}" for place, taken in placed(found.tiers).items()))
    if found.room < found.needed:
        room, needed = found.room * found.block, found.needed * found.block
        said = f"room for {room:,} of {needed:,} tokens: the oldest are evicted"
        out.print(f"[yellow]{said}[/yellow]")
    options = "".join(f" --{n.replace('_', '-')} {v}" for n, v in found.settings.items())
    named = "" if wanted.model is None else f" --model {wanted.model}"
    named = " --model FOLDER" if "=" in named else named
    out.print(f"\ncmr serve{named}{options}", soft_wrap=True)
    given = ", ".join(f"{name}={value}" for name, value in found.settings.items())
    out.print(f'cmr.attach(model, tokenizer=tokenizer, remember="all", {given})', soft_wrap=True)
    out.print("\n[dim]Not counted: the model, its window, and what a search or an answer copies. "
              "Nothing here is a time: docs/gpu-model.md has what a step and a search cost at "
              "best.[/dim]")  # fmt: skip
