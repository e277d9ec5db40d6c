"""Compiles every case for every GPU; of all of them, the table is written anew."""

from __future__ import annotations

from benchmarks.compiled.table import compile_all, known_targets, write
from benchmarks.shared.command import Parser, run, whole


def main(words: list[str] | None = None) -> None:
    """Command line."""
    parser = Parser(__doc__, appends=False)
    parser.add_argument("--only", default="", help="part of the names of the cases to print")
    parser.add_argument("--on", nargs="*", metavar="TARGET", help="architectures, such as sm_90")
    parser.add_argument("--workers", type=whole(), default=2)
    parser.add_argument(
        "--integers",
        action="store_true",
        help="compile with integers of 1, of a multiple of 16 and of neither instead; no table",
    )
    options = parser.parse_args(words)
    unknown = sorted(set(options.on) - set(known_targets())) if options.on else []
    if unknown:
        known = ", ".join(known_targets())
        parser.error(f"argument --on: some of {known} expected, got {', '.join(unknown)}")
    if options.integers:
        from benchmarks.compiled.integers import compile_whole

        compile_whole(options.only, options.on or ["sm_90"])
        return
    rows = compile_all(options.only, options.on, options.workers)
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()))
    if not options.only and not options.on:
        print(f"written: {write(rows)}")


if __name__ == "__main__":
    run(main)
