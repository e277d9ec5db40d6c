"""Rows from what pytest-benchmark saved with `--benchmark-json`.

One row a case is appended to `kernels.jsonl`: times as p20, p50 and p80 of the
rounds in microseconds, bytes, GB/s and the share of the device's measured peak, and what is needed
to repeat it. A case that failed is not in the file, so no row is made of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.ops.measure import with_speed
from benchmarks.shared import rows
from benchmarks.shared.command import Parser, UsageError, run
from benchmarks.shared.stats import quantiles

NAME = "kernels"


def rows_of(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one saved run.

    Args:
        saved: what `--benchmark-json` writes.

    Raises:
        ValueError: a case has no single rounds (`--benchmark-save` without
            `--benchmark-save-data` leaves them out).
    """
    made = []
    for case in saved["benchmarks"]:
        about, stats = dict(case["extra_info"]), case["stats"]
        if not stats.get("data"):
            raise ValueError(
                f"{case['fullname']}: the single rounds expected, got the summary only; "
                "use --benchmark-json or --benchmark-save-data"
            )
        times = quantiles(stats["data"])
        row = {
            "date": saved["datetime"],
            "case": case["name"],
            **about,
            **{f"us_{name}": round(1e6 * value, 3) for name, value in times.items()},
            "rounds": stats["rounds"],
            "calls_a_round": stats["iterations"],
            "python": saved["machine_info"]["python_version"],
        }
        if "peak_gb_s" in about:
            row.update(with_speed(about, times["p50"]))
        made.append(row)
    return made


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    for file in parser.parse_args(words).files:
        try:
            made = rows_of(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, KeyError) as error:
            raise UsageError(f"{file}: what --benchmark-json writes expected: {error}") from error
        path = rows.append(NAME, *made)
        for row in made:
            share = f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "-"
            print(f"{row['case']:60} {row['us_p50']:12.1f} us  {share:>7} of the measured peak")
        print(f"{len(made)} rows of {file.name} appended to {path.name}")


if __name__ == "__main__":
    run(main)
