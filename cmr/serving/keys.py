"""Who asks: keys, of which a file knows the hashes, each of one tenant and with its scopes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmr.errors import ConfigError
from cmr.serving.refusals import Refusal

SCOPES = ("use", "admin", "metrics")
"""What a key may be for: answers; the memory of its tenant; the server's figures."""
TENANT = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
ALONE = "local"
"""The tenant of a server without keys."""


@dataclass(frozen=True)
class Caller:
    """Whose key it is, and what that is for."""

    tenant: str
    scopes: frozenset[str]

    def name(self, session: str) -> str:
        """What a session of this tenant is called in the memory.

        Neither a tenant nor an id has a slash, so no other tenant's session is ever called so.
        """
        return f"{self.tenant}/{session}"

    def require(self, scope: str) -> None:
        """Raises `Refusal` where the key is not for that."""
        if scope not in self.scopes:
            raise Refusal(403, "scope", f"a key with the scope '{scope}' expected")


class Keys:
    """The keys of a server.

    Args:
        path: file of `make_key`; None: nobody needs a key, and all is one tenant's.

    Raises:
        ConfigError: the file cannot be read, others may write it, a line is none of ours, or there
            is no key in it.
    """

    def __init__(self, path: Path | None) -> None:
        self._callers = None if path is None else _read(path)

    @property
    def needed(self) -> bool:
        """Whether a key is needed."""
        return self._callers is not None

    def caller(self, header: str | None) -> Caller:
        """Whose request it is, by its `Authorization`; raises `Refusal` where that is no key."""
        if self._callers is None:
            return Caller(ALONE, frozenset(SCOPES))
        scheme, _, key = (header or "").partition(" ")
        # Looked up by its hash: how long that takes says nothing of any key.
        found = self._callers.get(_hash(key.strip())) if scheme.lower() == "bearer" else None
        if found is None:
            raise Refusal(401, "invalid_api_key", "a valid key as 'Authorization: Bearer KEY' "
                                                  "expected")  # fmt: skip
        return found


def make_key(path: Path, tenant: str, scopes: Sequence[str]) -> str:
    """Make a key, note its hash in a file that only its owner may read, and return it.

    Raises:
        ConfigError: a tenant or scope that is none, or the file cannot be written.
    """
    if not TENANT.fullmatch(tenant):
        raise ConfigError("tenant: 1 to 64 letters, digits, '_' and '-' expected, the first a "
                          f"letter or digit, got {tenant!r}")  # fmt: skip
    for scope in scopes or ("",):
        if scope not in SCOPES:
            raise ConfigError(f"scope: one of {', '.join(SCOPES)} expected, got {scope!r}")
    # 256 random bits: nobody finds them by trying, so a fast hash is enough.
    key = f"cmr-{secrets.token_urlsafe(32)}"
    made = time.strftime("%Y-%m-%d", time.gmtime())
    line = {"tenant": tenant, "scopes": sorted(set(scopes)), "sha256": _hash(key), "made": made}
    if path.exists():
        _read(path, least=0)  # nothing is added to a file of another kind
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise ConfigError(f"keys {path}: {error.strerror or error}") from None
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path, least: int = 1) -> dict[str, Caller]:
    try:
        if path.stat().st_mode & 0o022:
            raise ConfigError(f"keys {path}: others may write it; chmod go-w it first")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys {path}: cannot be read: {type(error).__name__}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            tenant, scopes, digest = (fields[name] for name in ("tenant", "scopes", "sha256"))
            fits = bool(TENANT.fullmatch(tenant) and re.fullmatch("[0-9a-f]{64}", digest))
            fits = fits and bool(scopes) and set(scopes) <= set(SCOPES)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise ConfigError(f"keys {path}: line {number} is none that `cmr serve-key` writes")
        found[digest] = Caller(tenant, frozenset(scopes))
    if len(found) < least:
        raise ConfigError(f"keys {path}: there is no key in it; `cmr serve-key` makes one")
    return found
