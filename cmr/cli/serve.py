"""``cmr serve``: checks, the model, its memory from a folder or a new one, and the server."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

import cmr
from cmr.cli.common import load_model, require_writable
from cmr.cli.display import console, working
from cmr.cli.errors import UsageError, naming
from cmr.cli.keys import Key
from cmr.cli.settings import Settings
from cmr.cli.stored import SMALL, open_stored
from cmr.errors import ConfigError
from cmr.memory.store.folder import Folder, is_ours
from cmr.memory.store.vault import check_key

CONNECTIONS = 1024
"""Open at once; whoever comes then is told 503."""
UPSTREAM_KEY = "CMR_UPSTREAM_KEY"
"""Of the environment: the key of the other server. Command lines are seen by others."""
UPSTREAM_SILENCE = 60.0
ROOM = ("window", "budget", "working_budget", "long_term_budget")
"""Options that are settings of the memory as they are."""


@dataclass(frozen=True)
class Serving:
    """The options of ``cmr serve``, checked; `overrides` are settings of the memory."""

    model: str | None
    host: str
    port: int
    keys: Path | None
    folder: Path | None
    shared: bool
    key: Key
    overrides: dict[str, Any]
    limits: Any
    upstream: Any

    @property
    def name(self) -> str:
        """What clients call the model."""
        if self.upstream is not None:
            return str(self.upstream.model)
        return SMALL if self.model is None else Path(self.model).name

    @classmethod
    def parse(
        cls,
        *,
        model: str | None,
        host: str,
        port: int,
        keys: Path | None,
        folder: Path | None,
        shared: bool,
        key_file: Path | None,
        batch: int,
        memory_weight: str | None,
        upstream: str | None,
        **more: Any,
    ) -> Serving:
        """Check what the option parser cannot; nothing is loaded yet."""
        _require_packages()
        from cmr.serving.keys import Keys
        from cmr.serving.settings import ServerSettings

        if keys is None and not _this_machine(host):
            raise UsageError(f"--host {host}: others than this machine need keys: make some with "
                             "`cmr serve-key` and give --keys FILE")  # fmt: skip
        if key_file is not None and folder is None:
            raise UsageError("--key-file: it is for --folder, which is not given")
        if shared and folder is None:
            raise UsageError("--shared: it is for --folder, which is not given")
        if keys is not None and not keys.exists():
            raise UsageError(f"--keys {keys}: no such file; `cmr serve-key --keys {keys} --tenant "
                             "NAME` makes it")  # fmt: skip
        Keys(keys)
        asked = (more.pop(f"upstream_{name}") for name in ("model", "timeout", "extra_body"))
        other = _another_server(upstream, *asked)
        if other is not None and memory_weight is not None:
            raise UsageError("--memory-weight: the model of --upstream reads memory as text, which "
                             "has no weight")  # fmt: skip
        given = Settings.parse(
            model=model,
            load=None if shared else folder,
            key_file=key_file,
            memory_weight=memory_weight,
            **{name: more.pop(name) for name in ROOM},
        )
        settings = ServerSettings(rows=batch, **more)
        overrides = {**given.overrides, "remember": "all", "unnamed": "refuse"}
        return cls(model, host, port, keys, folder, shared, given.key, overrides, settings, other)


def run(serving: Serving) -> None:
    """Load the model and its memory, serve until told to end, and save."""
    import uvicorn

    from cmr.cli.talk.listening import Server, bound

    with bound(serving.host, serving.port) as port, application(serving) as app:
        # Its own lines of requests would name sessions; what is noted is `cmr.audit`.
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("cmr").setLevel(logging.INFO)
        config = uvicorn.Config(app, access_log=False, log_config=None, server_header=False,
                                limit_concurrency=CONNECTIONS)  # fmt: skip
        folder = serving.folder
        kept = f", kept in {folder}" if folder is not None else ", kept nowhere: see --folder"
        out = console()
        # In one line however narrow the log is: it is looked for.
        where = f"http://{serving.host}:{serving.port}/v1"
        out.print(f"{serving.name} on {where}{escape(kept)}", soft_wrap=True)
        Server(config, serving.limits.drain, out.print).run([port])


REPLICAS = 2


def run_replicas(options: dict[str, Any], ray: bool, count: int | None) -> None:
    """The same by Ray Serve, until told to end; `options` are those of ``cmr serve``."""
    if not ray:
        raise UsageError("--replicas: it is for --ray, which is not given")
    if not options["shared"]:
        raise UsageError("--ray: replicas keep their sessions in one folder: give --folder and "
                         "--shared")  # fmt: skip
    # Paths, as a replica may begin in another folder.
    for name in ("folder", "keys", "key_file"):
        options[name] = options[name] and options[name].absolute()
    if options["model"] is not None:
        options["model"] = os.path.abspath(options["model"])
    serving = Serving.parse(**options)
    _check_shared(serving)
    from cmr.serving.replicas import Replicas

    out, count = console(), count or REPLICAS
    with working(out, f"starting {count} replicas"):
        running = Replicas(partial(_replica, options), count, host=serving.host,
                           port=serving.port, drain=serving.limits.drain)  # fmt: skip
    ends = threading.Event()
    try:
        # Behind Ray's start, which has its own way with signals.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ends.set())
        kept = escape(f", kept in {serving.folder}")
        out.print(
            f"{serving.name} on http://{serving.host}:{serving.port}/v1, {count} replicas{kept}"
        )
        ends.wait()
    finally:
        running.close()


def _replica(options: dict[str, Any]) -> AbstractContextManager[Any]:
    # Parsed where it is needed: keys are read from files and the environment there, and travel
    # nowhere.
    return application(Serving.parse(**options))


@contextmanager
def application(serving: Serving) -> Iterator[Any]:
    """The application, of the model with its memory, which is detached at the end."""
    from cmr.serving.app import create_app
    from cmr.serving.engines.storing import Storing

    out, folder, key = console(), serving.folder, serving.key.value
    if serving.shared:
        saved, at_once = False, None
        _check_shared(serving)
        _many_files()
    else:
        saved, at_once = folder is not None and _check(folder, serving.key), folder
    with working(out, f"loading {serving.model or SMALL}"):
        model, tokenizer = load_model(serving.model)
    storing = Storing()
    more = {"tokenizer": tokenizer, "keep": storing, **serving.overrides}
    if saved:
        assert folder is not None
        memory = cmr.load(folder, model, key=key, **more)
        out.print(f"[dim]{len(memory.sessions):,} sessions, {memory.tokens:,} tokens from "
                  f"{escape(str(folder))}[/dim]")  # fmt: skip
    else:
        memory = cmr.attach(model, **more)
    with memory:
        if at_once is not None:
            # A folder that cannot be saved to is found before anybody is served.
            with naming(f"--folder {folder}"):
                memory.save(at_once, key=key)
        yield create_app(
            model, memory, storing, tokenizer, name=serving.name, settings=serving.limits,
            keys=serving.keys, folder=folder, key=key, upstream=serving.upstream,
            shared=serving.shared,
        )  # fmt: skip


def new_key(file: Path, tenant: str, scopes: list[str]) -> None:
    """Make a key and show it, the only time."""
    _require_packages()
    from cmr.serving.keys import make_key

    print(make_key(file, tenant, scopes))


def _require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import httpx2  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f"a server needs the package {error.name}: run "
                         "`pip install 'cmr[serve]'`") from None  # fmt: skip


def _another_server(
    url: str | None, model: str | None, timeout: float | None, extra_body: str | None
) -> Any:
    """The server that is meant; None where none is. Raises `UsageError` for half of one."""
    from cmr.serving.engines.upstream.client import Upstream

    if url is None:
        for option, value in (("model", model), ("timeout", timeout), ("extra-body", extra_body)):
            if value is not None:
                raise UsageError(f"--upstream-{option}: it is for --upstream, which is not given")
        return None
    if not model:
        raise UsageError("--upstream: --upstream-model NAME is to say which model that server has")
    try:
        extra = json.loads(extra_body or "{}")
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise UsageError("--upstream-extra-body: a JSON object expected")
    try:
        silence = UPSTREAM_SILENCE if timeout is None else timeout
        return Upstream(url, model, os.environ.get(UPSTREAM_KEY) or None, silence, extra)
    except ConfigError as error:
        raise UsageError(f"--upstream: {error}") from None


def _this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_shared(serving: Serving) -> None:
    from cmr.serving.homes.homes import require_shared

    assert serving.folder is not None
    check_key(serving.key.value)
    require_shared(serving.folder)
    require_writable(f"--folder {serving.folder}", serving.folder)


def _many_files() -> None:
    """Let this process have as many files open as it may: each session at home here is one."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check(folder: Path, key: Key) -> bool:
    """Whether a memory is saved there; raises `UsageError` where something else is."""
    check_key(key.value)
    if Folder(folder).exists():
        open_stored(folder, key, "--folder", True)
        return True
    if folder.is_dir():
        if not all(is_ours(name) for name in os.listdir(folder)):
            raise UsageError(f"--folder {folder}: it holds other files; give a new or empty one")
    elif folder.exists():
        raise UsageError(f"--folder {folder}: is a file, a folder is expected")
    require_writable(f"--folder {folder}", folder)
    return False
