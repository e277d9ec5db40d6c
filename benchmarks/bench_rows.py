"""Rows from what pytest-benchmark saved: `python -m benchmarks.bench_rows FILE.json`.

Appends one row a case to `benchmarks/results/kernels.jsonl`: times as p20, p50 and p80 of the
rounds in microseconds, bytes, GB/s and the share of the device's measured peak, and what is needed
to repeat it. A case that failed is not in the file, so no row is made of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.bench_common import with_speed
from benchmarks.stats import quantiles

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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--into", type=Path, help="folder of the rows (default: results)")
    options = parser.parse_args()
    for file in options.files:
        made = rows_of(json.loads(file.read_text(encoding="utf-8")))
        path = rows.append(NAME, *made, folder=options.into)
        for row in made:
            share = f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "-"
            print(f"{row['case']:60} {row['us_p50']:12.1f} us  {share:>7} of the measured peak")
        print(f"{len(made)} rows appended to {path}")


if __name__ == "__main__":
    main()
