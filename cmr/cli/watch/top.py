"""``cmr top``: a running server by its figures, once or as it goes."""

from __future__ import annotations

import math
import time

from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from cmr.cli.display import console, size
from cmr.cli.errors import UsageError
from cmr.cli.watch.figures import Figures, fetch

STAGES = ("call", "prompt", "token", "search", "read", "reweave", "store")


def run(url: str, once: bool, every: float) -> None:
    """Show the figures: since the server began with `once`, else of each `every` seconds."""
    out, now, at = console(), fetch(url), time.monotonic()
    if once:
        out.print(view(now, now, None))
        return
    with Live(view(now, now, None), console=out, auto_refresh=False, screen=out.is_terminal) as on:
        while True:
            time.sleep(every)
            try:
                later, then = fetch(url), time.monotonic()
            except UsageError as error:  # it may come back
                on.update(Text(f"{error}; trying again"), refresh=True)
                continue
            on.update(view(later, later - now, then - at), refresh=True)
            now, at = later, then


def view(now: Figures, since: Figures, seconds: float | None) -> Group:
    """What is there `now`, and what happened `since`, in so many seconds; None: since it began."""
    return Group(_state(now, since, seconds), Text(), _stages(since))


def _state(now: Figures, since: Figures, seconds: float | None) -> Table:
    table = Table(Column(style="cyan", no_wrap=True), Column(), box=None, show_header=False)

    def amount(value: float, unit: str) -> str:
        return f"{value:,.0f} {unit}" if seconds is None else f"{value / seconds:,.1f} {unit}/s"

    table.add_row("figures", "since the server began" if seconds is None
                  else f"of the last {seconds:.1f} s")  # fmt: skip
    waiting, running = now.get("cmr_waiting_requests"), now.get("cmr_running_requests")
    table.add_row("load", f"{running:.0f} running, {waiting:.0f} waiting")
    failed = sum(v for labels, v in since.all("cmr_requests_total") if labels["status"] >= "500")
    table.add_row("requests", f"{amount(since.sum('cmr_requests_total'), 'requests')}, "
                              f"{failed:.0f} failed")  # fmt: skip
    for kind in ("prompt", "answer", "recalled"):
        table.add_row(f"{kind}", amount(since.get("cmr_tokens_total", kind=kind), "tokens"))
    searches, found = since.get("cmr_searches_total"), since.get("cmr_recalls_total")
    share = f", {found / searches:.0%} found something" if searches else ""
    table.add_row("searches", amount(searches, "searches") + share)
    stored, most = now.get("cmr_stored_tokens"), now.get("cmr_capacity_tokens")
    table.add_row("stored", f"{stored:,.0f} of {most:,.0f} tokens, "
                            f"{now.get('cmr_sessions'):,.0f} sessions")  # fmt: skip
    tiers = (f"{labels['tier']} {size(int(v))}" for labels, v in now.all("cmr_tier_bytes"))
    table.add_row("tiers", Text(", ".join(tiers)))
    table.add_row("evicted", amount(since.get("cmr_evicted_blocks_total"), "blocks"))
    wrong = [f"{labels['stage']}: {labels['error']} {v:.0f} times"
             for labels, v in since.all("cmr_left_out_total") if v]  # fmt: skip
    if since.get("cmr_lost_tokens_total"):
        wrong.append(f"{since.get('cmr_lost_tokens_total'):,.0f} tokens could not be stored")
    if now.get("cmr_save_failing"):
        wrong.append("the last save failed")
    table.add_row("memory fails at", Text("; ".join(wrong) or "nothing",
                                          style="red" if wrong else ""))  # fmt: skip
    return table


def _stages(since: Figures) -> Table:
    right = [Column(name, justify="right") for name in ("count", "half below", "95 % below")]
    table = Table(Column("stage", style="cyan"), *right, box=None, header_style="bold")
    for stage in STAGES:
        count = since.get("cmr_stage_seconds_count", stage=stage)
        bounds = (since.percentile("cmr_stage_seconds", s, stage=stage) for s in (0.5, 0.95))
        table.add_row(stage, f"{count:,.0f}", *map(_bound, bounds))
    return table


def _bound(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if math.isinf(seconds):
        return "longer"
    return f"{seconds:g} s" if seconds >= 1 else f"{1e3 * seconds:g} ms"
