"""Draws what is found over the size of the memory and the place in it, from the rows.

`results/retrieval.png`: above, hit rate at two passages over the memory's size for each kind of
question; below, the same as a map over the place of the fact, of all kinds together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run
from benchmarks.texts.haystack import ASKED_KINDS

SHOWN = ("default", "semantic_similarity", "bm25", "dense")
COLOURS = {"default": "#1f6f8b", "semantic_similarity": "#6aa84f", "bm25": "#c9772b",
           "dense": "#8e5ea2"}  # fmt: skip


def latest(name: str, folder: Path | None) -> list[dict[str, Any]]:
    """The last row of each place in a table: of each length, system, and kind or depth."""
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows.load(name, folder):
        last[row["tokens"], row["system"], row.get("kind"), row.get("depth")] = row
    return list(last.values())


def draw(found: list[dict[str, Any]], places: list[dict[str, Any]], path: Path) -> None:
    """Draws both figures into one file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    systems = [s for s in SHOWN if any(row["system"] == s for row in found)]
    lengths = sorted({row["tokens"] for row in found})
    figure, axes = plt.subplots(
        2, 4, figsize=(15, 7.2), height_ratios=(1.25, 1), constrained_layout=True
    )
    for at, kind in enumerate(ASKED_KINDS):
        axis = axes[0, at]
        for system in systems:
            mine = sorted(
                (row["tokens"], row["read@2"], *row["read@2 interval"])
                for row in found
                if row["system"] == system and row["kind"] == kind
            )
            x, y, low, high = (np.array(column) for column in zip(*mine, strict=True))
            axis.plot(x, 100 * y, marker="o", color=COLOURS[system], label=system)
            axis.fill_between(x, 100 * low, 100 * high, color=COLOURS[system], alpha=0.12, lw=0)
        axis.set(xscale="log", ylim=(0, 103), title=kind, xlabel="stored tokens")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("facts found in 2 passages, %")
    axes[0, 0].legend(loc="lower left", fontsize=8)
    depths = sorted({row["depth"] for row in places})
    for at in range(4):
        axis = axes[1, at]
        if at >= len(systems):
            axis.axis("off")
            continue
        table = np.full((len(lengths), len(depths)), np.nan)
        for row in places:
            if row["system"] == systems[at]:
                table[lengths.index(row["tokens"]), depths.index(row["depth"])] = row["read@2"]
        image = axis.imshow(100 * table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for (y, x), value in np.ndenumerate(table):
            if not np.isnan(value):
                colour = "white" if value < 0.6 else "black"
                axis.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color=colour,
                          fontsize=8)  # fmt: skip
        axis.set_yticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        axis.set_xticks(range(len(depths)), [f"{100 * d:.0f}" for d in depths])
        axis.set(title=systems[at], xlabel="place of the fact in the text, %")
    axes[1, 0].set_ylabel("stored tokens")
    figure.colorbar(image, ax=axes[1, :], label="facts found in 2 passages, %")
    figure.savefig(path, dpi=110)


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_drawing("retrieval.png")
    args = parser.parse_args(words)
    found, places = latest("retrieval", args.rows), latest("retrieval_depth", args.rows)
    if not found or not places:
        raise UsageError("no rows to draw: run python -m benchmarks.retrieval first")
    draw(found, places, args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
