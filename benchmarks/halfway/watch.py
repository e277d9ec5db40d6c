"""What a call touches of the machine: files that it opens, and the most memory that it takes."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

FILES = {
    "open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link",
    "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.copyfile",
    "shutil.rmtree", "glob.glob",
}  # fmt: skip
"""Events of the interpreter that name a file first (or two of them)."""
NEVER = ("os.system", "os.exec", "os.fork", "subprocess.Popen", "socket.", "ctypes.dlopen")
"""Beginnings of events that nothing in a file may ever bring about."""
SYSTEM = ("/proc/meminfo", "/proc/self/status", "/sys/fs/cgroup/memory.max")
"""Files in which the system says how much memory is free."""


class Watch:
    """Notes what is touched outside of some folders while it is on.

    The interpreter's own files are left out: what it imports, and how much memory it has left.

    Args:
        inside: folders in which anything may be opened.

    Attributes:
        touched: events with files of other places, or that may never happen.
    """

    def __init__(self, inside: Sequence[str | os.PathLike[str]]) -> None:
        self._inside = tuple(os.path.realpath(place) for place in inside)
        self._code = tuple({os.path.realpath(place) for place in (*sys.path, sys.prefix) if place})
        self._unnamed = os.path.realpath(tempfile.gettempdir())
        self._on = False
        self.touched: list[str] = []
        sys.addaudithook(self._note)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Looks at what happens inside."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event.startswith(NEVER):
            self.touched.append(f"{event} {str(arguments)[:80]}")
        elif event in FILES and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            code = path.endswith((".py", ".pyc", ".so", "__pycache__")) or os.path.isdir(path)
            # The last tier's files have no name: only the place for such files is opened.
            known = path in (*SYSTEM, self._unnamed) or path.startswith(self._inside)
            if not known and not (code and path.startswith(self._code)):
                self.touched.append(f"{event} {path}")


def most_held() -> int:
    """The most memory that the process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
