"""The command line: ``cmr demo``, ``ask``, ``chat``, ``evaluate``, ``memory`` and ``info``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 2 when the user can mend it.

    Args:
        arguments: the words after ``cmr``; ``None`` takes those of the process.
    """
    try:
        import rich  # noqa: F401
        import typer
    except ImportError as error:
        print(
            f"error: the command line needs the package {error.name}: "
            "run `pip install 'cmr[cli]'` (or 'cmr[demo]' for the small model too)",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    # Threads that wait for each other by spinning make torch ten times slower wherever another
    # process wants the cores too. Read when torch loads, so it must be set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        # A pipe may have an encoding without our signs; a '?' is better than an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    from cmr.cli.app import app
    from cmr.cli.errors import WrongUse, told

    words = None if arguments is None else list(arguments)
    try:
        # Not standalone: errors of options would be drawn in a box then, ours are a line.
        raise SystemExit(app(args=words, prog_name="cmr", standalone_mode=False) or 0)
    except WrongUse as error:
        if line := told(error):
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except typer.Abort:
        print("aborted: nothing was changed", file=sys.stderr)
        raise SystemExit(1) from None
