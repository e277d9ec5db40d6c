"""How ``ask`` and ``chat`` begin and end: model, saved memory, session, documents, saving."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

import cmr
from cmr.cli import common as shared
from cmr.cli.display import counted, progress_bar, size, working
from cmr.cli.errors import UsageError, naming
from cmr.cli.input.documents import read_document
from cmr.cli.input.pipe import name_of
from cmr.cli.keys import Key
from cmr.cli.settings import Settings
from cmr.cli.stored import Stored, named, open_stored
from cmr.memory.store.folder import Folder, is_ours
from cmr.memory.store.vault import check_key

DEFAULT_SESSION = "0"
"""What the first row of a batch writes to where no session is named."""


@contextmanager
def opened(
    out: Console, settings: Settings, documents: list[Path], may_begin: bool
) -> Iterator[shared.Speaker]:
    """Check all a user can get wrong, then load and read; save at the end, if nothing went wrong.

    Gives the model with its memory, in the session that was asked for. With `may_begin`, a session
    that a loaded memory does not have may begin without a document.
    """
    # All that needs no model comes first: loading one takes long, and mistakes are told at once.
    source = None
    if settings.load is not None:
        source = open_stored(settings.load, settings.key, "--load", settings.save is not None)
        # Loading would refuse a memory of another model, but only after loading the model.
        if settings.model is None and source.model_name and not source.by_small_model:
            raise UsageError(
                f"--load {source.path}: it was saved by the model {source.model_name!r}: "
                "give that with --model"
            )
    name = _session(settings, source, may_begin or bool(documents))
    if settings.save is not None:
        _check_target(settings, source)
    # The pages of a long PDF, or a pipe, may take minutes: behind all that is told at once.
    texts = {path: read_document(path) for path in dict.fromkeys(documents)}
    with working(out, f"loading {settings.model or 'SmolLM2-135M-Instruct'}"):
        model, tokenizer = shared.load_model(settings.model)
    with ExitStack() as stack:
        # Saved inside of the session and before detaching, and only where nothing was raised.
        try:
            memory = stack.enter_context(_attach(out, settings, source, model, tokenizer))
            if not memory.stats()["calibrated"]:
                named_model = f" --model {settings.model}" if settings.model else ""
                out.print(
                    "[dim]searched by a sample of the model, taken at the first question: "
                    f"`cmr calibrate{escape(named_model)}` measures it once with questions[/dim]"
                )
            if name is not None:
                _enter(stack, memory, name)
                if source is not None and settings.session is None:
                    out.print(f"[dim]session {escape(name)}, the only one in it[/dim]")
            read_all(out, memory, tokenizer, texts)
            yield shared.Speaker(model, tokenizer, memory, settings.max_new_tokens)
        except KeyboardInterrupt:
            if settings.save is not None:
                print(f"nothing was saved to {settings.save}", file=sys.stderr)
            raise
        if settings.save is not None:
            _save(out, settings, memory)


def read_all(out: Console, memory: Any, tokenizer: Any, texts: dict[Path, str]) -> None:
    """Read every document into the memory, saying how fast."""
    for path, text in texts.items():
        name = escape(name_of(path))
        long = len(text) > shared.PIECE
        with working(out, f"cutting {name_of(path)} into tokens") if long else nullcontext():
            # Without the warning that it is too long for the model: memory reads it in pieces.
            ids = shared.encoded(tokenizer, text, verbose=False)
        room = memory.stats()["capacity_tokens"]
        if ids.shape[1] > room:
            out.print(
                f"[yellow]{name} has {ids.shape[1]:,} tokens, the memory room for {room:,}: what "
                "was read first is forgotten; a larger --budget or --long-term-budget keeps it"
                "[/yellow]"
            )
        with progress_bar(out, f"reading {name}") as progress:
            report = memory.read(ids, progress=progress or False)
        out.print(
            f"[dim]read {name}: {report.tokens:,} tokens in {report.seconds:.1f} s "
            f"({report.tokens_per_second:,.0f} tokens/s)[/dim]"
        )


def _attach(
    out: Console, settings: Settings, source: Stored | None, model: Any, tokenizer: Any
) -> Any:
    if source is None:
        return cmr.attach(model, tokenizer=tokenizer, **settings.overrides)
    began = time.perf_counter()
    memory = cmr.load(source.path, model, key=source.key, tokenizer=tokenizer, **settings.overrides)
    seconds = time.perf_counter() - began
    out.print(
        f"[dim]loaded {memory.tokens:,} tokens in {counted(len(source.saved), 'block')} of "
        f"{counted(len(memory.sessions), 'session')} from {escape(str(source.path))} "
        f"in {seconds:.1f} s[/dim]"
    )
    return memory


def _enter(stack: ExitStack, memory: Any, name: str) -> None:
    try:
        stack.enter_context(memory.session(name, create=True))
    except ValueError as error:
        # One session more than the settings allow.
        raise UsageError(f"--session {name}: {error}") from None


def _save(out: Console, settings: Settings, memory: Any) -> None:
    key = settings.key.value
    with naming(f"--save {settings.save}"):
        report = memory.save(settings.save, key=key)
    reused = f", {size(report.bytes_reused)} there already" if report.bytes_reused else ""
    out.print(
        f"[dim]saved {counted(report.blocks, 'block')} to {escape(str(settings.save))} in "
        f"{report.seconds:.1f} s: {size(report.bytes_written)} written{reused}, "
        f"{'encrypted' if key is not None else 'not encrypted'}[/dim]"
    )


# -- checks before anything is loaded ------------------------------------------------------------


def _session(settings: Settings, source: Stored | None, may_begin: bool) -> str | None:
    """The session to use, None for the one without a name."""
    if source is None:
        return settings.session
    there = source.sessions
    if settings.session is not None:
        if not may_begin:
            source.require([settings.session])
        return settings.session
    # Without a name it goes on where scripts without names write, if anything is there.
    if not there or DEFAULT_SESSION in there:
        return None
    if len(there) == 1:
        return there[0]
    raise UsageError(f"--load {source.path}: say which --session of {named(there)}")


def _check_target(settings: Settings, source: Stored | None) -> None:
    """What can be seen beforehand of why saving would fail, or replace what nobody looked at."""
    path, key = settings.save, settings.key.value
    assert path is not None
    check_key(key)
    folder = Folder(path)
    if folder.exists():
        loaded = source is not None and os.path.samefile(path, source.path)
        if not loaded and not settings.force:
            raise UsageError(
                f"--save {path}: there is a saved memory already; add --load {path} to go on "
                "from it, or --force to replace it"
            )
        if not loaded and key is None:
            # Without a key, what only a key can read is not replaced either.
            open_stored(path, Key(), "--save")
    elif path.is_dir():
        # What a save that was killed has left may be replaced; anything else is somebody's.
        if not all(is_ours(name) for name in os.listdir(path)):
            raise UsageError(
                f"--save {path}: the folder holds other files; give a new or empty one"
            )
    elif path.exists():
        raise UsageError(f"--save {path}: is a file, a folder is expected")
    # The folder may not exist yet: it is made in the nearest one that does.
    shared.require_writable(f"--save {path}", path)
