"""The options of ``ask`` and ``chat``, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmr.cli.errors import UsageError
from cmr.cli.keys import Key, find_key
from cmr.config import CMRConfig
from cmr.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """What ``ask`` and ``chat`` have in common: the options of the same names, see `app`.

    `overrides` are the settings that were given, as `cmr.attach` and `cmr.load` take them.
    """

    model: str | None
    session: str | None
    max_new_tokens: int
    load: Path | None
    save: Path | None
    force: bool
    key: Key
    overrides: dict[str, Any]

    @classmethod
    def parse(
        cls,
        *,
        model: str | None,
        session: str | None = None,
        max_new_tokens: int = 1,
        load: Path | None,
        save: Path | None = None,
        force: bool = False,
        key_file: Path | None,
        memory_weight: str | None,
        **given: int | str | None,
    ) -> Settings:
        """Check what the option parser cannot; None: not given.

        `memory_weight` and budgets are numbers or sizes in words.
        """
        if session is not None and not session.strip():
            raise UsageError("--session: a name expected, got an empty one")
        overrides: dict[str, Any] = {
            name: _number(value) for name, value in given.items() if value is not None
        }
        if memory_weight is not None:
            overrides["memory_weight"] = _weight(memory_weight)
        # Checked against the defaults already here; with `--load` what was saved decides once more.
        try:
            CMRConfig().with_overrides(**overrides)
        except ConfigError as error:
            name, colon, rest = str(error).partition(":")
            option = f"--{name.replace('_', '-')}" if name in overrides else name
            raise UsageError(f"{option}{colon}{rest}") from None
        # A key that is asked for and used for nothing would let somebody believe in it.
        key = find_key(key_file)
        if key_file is not None and load is None and save is None:
            raise UsageError("--key-file: it is for --load and --save, and neither is given")
        return cls(model, session, max_new_tokens, load, save, force, key, overrides)


def _number(value: int | str) -> int | str:
    """A number of tokens where there is one; else what the settings take for a size, or refuse."""
    try:
        return int(value)
    except ValueError:
        return value


def _weight(text: str) -> str | float:
    if text == "auto":
        return text
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0.0 <= weight <= 1.0:
        raise UsageError(f"--memory-weight: 'auto' or a number from 0 to 1 expected, got {text!r}")
    return weight
