"""Plots as SVG that stands in the page: bars, differences, and scores beside waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW = 860, 170, 60, 34
_INNER = WIDTH - LEFT - RIGHT


def bars(summary: Sequence[dict[str, Any]], mine: str) -> str:
    """The score of each system, 0 to 100 %, with its interval."""
    parts = [_grid(len(summary), [(x / 4, f"{25 * x} %") for x in range(5)])]
    for number, row in enumerate(summary):
        y = _middle(number)
        low, high = row["interval"]
        parts += [
            _name(row["system"], y, mine),
            f'<rect class="bar{_own(row, mine)}" x="{LEFT}" y="{y - 9}" rx="3" '
            f'width="{max(1.0, _INNER * row["score"]):.1f}" height="18"/>',
            _span(LEFT + _INNER * low, LEFT + _INNER * high, y),
            f'<text x="{LEFT + _INNER * high + 8:.1f}" y="{y + 4}">{100 * row["score"]:.0f}</text>',
        ]
    return _svg(parts, len(summary), "Score of each system with its 95 % interval")


def differences(summary: Sequence[dict[str, Any]], mine: str) -> str:
    """The difference of each system to one, in points, with its interval; empty without any."""
    rows = [row for row in summary if row.get("difference")]
    if not rows:
        return ""
    ends = [abs(end) for row in rows for end in _ends(row["difference"])]
    # At least 20 points to each side: a small difference is to look small.
    most = max(0.2, math.ceil(max(ends) * 5) / 5)

    def at(value: float) -> float:
        return (value + most) / (2 * most)

    ticks = [-most, -most / 2, 0.0, most / 2, most]
    parts = [_grid(len(rows), [(at(tick), points(tick)) for tick in ticks])]
    parts.append(_line(LEFT + _INNER / 2, len(rows), "zero"))
    for number, row in enumerate(rows):
        y, (low, high) = _middle(number), _ends(row["difference"])
        parts += [
            _name(row["system"], y, mine),
            _span(LEFT + _INNER * at(low), LEFT + _INNER * at(high), y),
            f'<circle class="dot" r="6" cx="{LEFT + _INNER * at(row["difference"]["mean"]):.1f}" '
            f'cy="{y}"/>',
        ]
    return _svg(parts, len(rows), f"Difference of each system to {mine}, in points")


def waiting(summary: Sequence[dict[str, Any]], mine: str) -> str:
    """Seconds to the first answer and to each next one of each system, on a logarithmic scale."""
    kinds = ("first_answer_seconds", "first_token_seconds")
    values = [max(row[kind], 1e-3) for row in summary for kind in kinds]
    # A whole power of ten at both ends; a reply that took no time has no logarithm.
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))

    def at(value: float) -> float:
        return LEFT + _INNER * (math.log10(max(value, 1e-3)) - low) / (high - low)

    ticks = [((x - low) / (high - low), f"{10.0**x:g} s") for x in range(low, high + 1)]
    parts = [_grid(len(summary), ticks)]
    for number, row in enumerate(summary):
        y = _middle(number)
        first, later = (at(row[kind]) for kind in kinds)
        parts += [
            _name(row["system"], y, mine),
            f'<line class="grid" stroke-width="3" x1="{later:.1f}" x2="{first:.1f}" y1="{y}" '
            f'y2="{y}"/>',
            f'<circle class="dot{_own(row, mine)}" r="4" cx="{later:.1f}" cy="{y}"/>',
            f'<circle class="dot{_own(row, mine)}" r="7" cx="{first:.1f}" cy="{y}"/>',
            f'<text class="soft" x="{max(first, later) + 12:.1f}" y="{y + 4}">'
            f"{row[kinds[0]]:.1f} s</text>",
        ]
    return _svg(parts, len(summary), "Seconds to the first and to each next answer")


def points(difference: float) -> str:
    """A difference of scores as a number of points with its sign."""
    return f"{100 * difference:+.0f}" if round(100 * difference) else "0"


def _ends(difference: dict[str, Any]) -> tuple[float, float]:
    """The interval of a difference; without one the difference itself."""
    return difference["interval"] or (difference["mean"], difference["mean"])


def _middle(number: int) -> int:
    return number * ROW + ROW // 2


def _own(row: dict[str, Any], mine: str) -> str:
    return " mine" if row["system"] == mine else ""


def _name(system: str, y: int, mine: str) -> str:
    own = " mine" if system == mine else ""
    # Longer names would run out of the picture on the left.
    shown = system if len(system) <= 22 else system[:21] + "…"
    return (
        f'<text class="name{own}" text-anchor="end" x="{LEFT - 12}" y="{y + 4}">'
        f"{escape(shown)}</text>"
    )


def _span(left: float, right: float, y: int) -> str:
    """An interval: a line with ends."""
    ends = "".join(f"M{x:.1f} {y - 5}v10" for x in (left, right))
    return f'<path class="span" fill="none" d="M{left:.1f} {y}H{right:.1f}{ends}"/>'


def _line(x: float, rows: int, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{rows * ROW}"/>'


def _grid(rows: int, ticks: Sequence[tuple[float, str]]) -> str:
    """Upright lines at shares of the width, with what they mean below."""
    out = []
    for share, label in ticks:
        x = LEFT + _INNER * share
        out.append(_line(x, rows, "grid"))
        out.append(
            f'<text class="soft" text-anchor="middle" x="{x:.1f}" y="{rows * ROW + 17}">'
            f"{label}</text>"
        )
    return "".join(out)


def _svg(parts: Sequence[str], rows: int, title: str) -> str:
    height = rows * ROW + 24
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
