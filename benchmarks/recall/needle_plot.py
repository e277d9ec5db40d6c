"""Heat map of the needle in a haystack from its rows: depth x length, a panel for each system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run

PANELS = (("window", "window only"), ("full", "full context"), ("memory", "memory"))
VALUE = {"none": 0.0, "named": 0.5, "full": 1.0}
WORDS = {0.0: "not named", 0.5: "sandwich or park", 1.0: "both"}

BEYOND: dict[str, Any] = {
    "facecolor": "#e8e8e8",
    "hatch": "//",
    "edgecolor": "#b5b5b5",
    "linewidth": 0,
}


def newest(every: list[dict[str, Any]]) -> dict[tuple[str, int, float], dict[str, Any]]:
    """The last row of each cell."""
    return {(r["system"], r["tokens"], float(r["depth"])): r for r in every}


def draw(every: list[dict[str, Any]], path: Path) -> None:
    """Three panels side by side; cells without a row (beyond the model's limit) are hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch, Rectangle

    cells = newest(every)
    lengths = sorted({k[1] for k in cells})
    depths = sorted({k[2] for k in cells})
    colours = ListedColormap(["#c0392b", "#f0c24b", "#2e8b57"])
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, (system, title) in zip(axes, PANELS, strict=True):
        grid = [
            [VALUE[cells[k]["named"]] if (k := (system, n, d)) in cells else float("nan")
             for n in lengths]
            for d in depths
        ]  # fmt: skip
        axis.imshow(grid, cmap=colours, vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(grid):
            for x, value in enumerate(row):
                if value != value:
                    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **BEYOND))
        asked = [v for row in grid for v in row if v == v]
        hit = sum(v > 0 for v in asked)
        axis.set_title(f"{title}: {hit} of {len(asked)} cells", fontsize=11)
        axis.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        axis.set_xticks([x - 0.5 for x in range(1, len(lengths))], minor=True)
        axis.set_yticks([y - 0.5 for y in range(1, len(depths))], minor=True)
        axis.grid(which="minor", color="white", linewidth=1)
        axis.tick_params(which="minor", length=0)
        axis.set_xlabel("tokens in the text")
    axes[0].set_yticks(range(len(depths)), [f"{d:g} %" for d in depths])
    axes[0].set_ylabel("depth of the needle")
    keys = [Patch(color=colours(v), label=WORDS[v]) for v in (1.0, 0.5, 0.0)]
    keys.append(Patch(label="longer than the model takes", **BEYOND))
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    last = every[-1]
    figure.suptitle(
        f"Needle in a haystack · {last.get('model', '')} · window 512 · {last['date'][:10]}",
        fontsize=12,
    )
    figure.savefig(path, dpi=150)


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="only rows of these runs")
    parser.add_drawing("needle.png")
    args = parser.parse_args(words)
    every = rows.load("needle", args.rows)
    every = [r for r in every if not args.runs or r["run"] in args.runs]
    if not every:
        raise UsageError("no rows to draw: run python -m benchmarks.recall.needle first")
    draw(every, args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
