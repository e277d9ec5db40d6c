"""``cmr calibrate``: measures where a model's memory is best searched, once, and keeps it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table

from cmr.cli.common import load_model, require_writable
from cmr.cli.display import conditions, console, progress_bar, size, working
from cmr.cli.errors import UsageError
from cmr.cli.input.documents import read_document


def run(model: str | None, text: Path | None, out: Path | None, seed: int) -> None:
    """Measure, show what was found of the planted facts, and save it."""
    given = None if text is None else read_document(text, "--text")
    if out is not None:
        _check_writable(out)
    from cmr import calibrate
    from cmr.integration.calibration.files import file_name, folder

    screen = console()
    with working(screen, "loading the model"):
        decoder, tokenizer = load_model(model)
    screen.print(f"[dim]{conditions(decoder)}; reads a text once for each layer: minutes[/dim]")
    began = time.perf_counter()
    try:
        with progress_bar(screen, "measuring") as show:
            found = calibrate(
                decoder, tokenizer, text=given, save=False, progress=show or False, seed=seed
            )
        path = found.save(folder() / file_name(found) if out is None else out)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror or error}") from error
    screen.print(_table(found))
    screen.print(
        f"[dim]measured in {time.perf_counter() - began:.0f} s, saved to {escape(str(path))} "
        f"({size(path.stat().st_size)})[/dim]"
    )
    attach = "cmr.attach(model)" if out is None else f"cmr.attach(model, calibration={str(out)!r})"
    screen.print(f"{escape(attach)} searches by it from now on")


def _table(found: Any) -> Table:
    """What was found by states as they are, and as they are searched from now on."""
    candidates = found.measured["candidates"]
    plain = max((c for c in candidates if c["width"] is None), key=lambda c: c["rank"])
    width = None if found.projection is None else found.projection.shape[1]
    chosen = next(c for c in candidates if (c["layer"], c["width"]) == (found.index_layer, width))
    numbers = [Column(name, justify="right") for name in ("layer", "same words", "paraphrased")]
    table = Table(Column("mean reciprocal rank of 48 facts"), *numbers, box=None, padding=(0, 1))
    for name, row in (("states as they are, at best", plain), ("chosen", chosen)):
        what = name if row["width"] is None else f"{name}, whitened to {row['width']} numbers"
        shown = (f"{row[key]:.2f}" for key in ("same_words", "paraphrased"))
        table.add_row(what, str(row["layer"]), *shown)
    return table


def _check_writable(out: Path) -> None:
    """Before minutes of work: a file can be written there."""
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, a file is expected")
    require_writable(f"--out {out}", out.absolute().parent)
