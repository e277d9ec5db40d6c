"""`python -m benchmarks.compiled` compiles every case for every GPU and writes the table anew."""

from __future__ import annotations

import argparse

from benchmarks.compiled.table import compile_all, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of the cases to print")
    parser.add_argument("--on", nargs="*", help="architectures, such as sm_90")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    rows = compile_all(options.only, options.on, options.workers)
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()))
    if not options.only and not options.on:
        print(f"written: {write(rows)}")


if __name__ == "__main__":
    main()
