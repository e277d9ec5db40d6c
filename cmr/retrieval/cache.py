"""Answers to what was asked before, as long as the store has not changed."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Any

import torch

from cmr._fork import renew
from cmr.config import checks as check
from cmr.retrieval.ask import Ask

Answer = tuple[Any, ...]
"""Tensors, or None."""
_COUNTED = ("hits", "misses", "invalidations", "evictions")


class RetrievalCache:
    """The answers to the newest questions; the one that was used longest ago makes room.

    An answer holds for one version of the store. The first use with another version drops all of
    them, so that nothing of what was forgotten, moved or overwritten is given again, and `forget`
    drops them at once. A key is a digest: states and tokens of a question are not kept.

    Answers are copied when they are put in and when they are given. Methods may be called from
    several threads.

    Args:
        size: answers that are kept, 0 or more; 0: none ever is.

    Raises:
        ConfigError: the size is not as above.
    """

    def __init__(self, size: int) -> None:
        self.size = check.integer("cache_size", size, 0)
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._version: Hashable = None
        self._counted = Counter(dict.fromkeys(_COUNTED, 0))
        self._lock = threading.RLock()
        renew(self, "_lock", threading.RLock)

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes, version: Hashable) -> Answer | None:
        """The answer to a question (see `key_of`) for a store as it is now (see `version_of`)."""
        if not self.size:
            return None
        with self._lock:
            self.hold(version)
            answer = self._answers.get(key)
            self._counted["misses" if answer is None else "hits"] += 1
            if answer is None:
                return None
            self._answers.move_to_end(key)
            return _copied(answer)

    def put(self, key: bytes, version: Hashable, answer: Answer) -> None:
        """Keep an answer that was found for a store as it was when the search began."""
        if not self.size:
            return
        with self._lock:
            self.hold(version)
            # Copies on both sides: whoever has an answer may write into it.
            self._answers[key] = _copied(answer)
            self._answers.move_to_end(key)
            if len(self._answers) > self.size:
                self._answers.popitem(last=False)
                self._counted["evictions"] += 1

    def hold(self, version: Hashable) -> None:
        """Drop all answers to another version of the store."""
        with self._lock:
            if version != self._version:
                self.forget()
                self._version = version

    def forget(self) -> int:
        """Drop all answers; returns how many there were."""
        with self._lock:
            dropped = len(self._answers)
            self._answers.clear()
            self._counted["invalidations"] += dropped
            return dropped

    def stats(self) -> dict[str, Any]:
        """What happened so far, as plain data.

        `entries` and `size`; counted since the cache was made: `hits`, `misses`, `hit_rate` (None
        before the first question), `invalidations` (answers that were dropped because the store
        changed or by `forget`) and `evictions` (answers that made room). All are 0 at size 0.
        """
        with self._lock:
            asked = self._counted["hits"] + self._counted["misses"]
            return {
                "entries": len(self._answers),
                "size": self.size,
                **self._counted,
                "hit_rate": self._counted["hits"] / asked if asked else None,
            }


def _copied(answer: Answer) -> Answer:
    return tuple(None if part is None else part.clone() for part in answer)


def key_of(ask: Ask, *settings: object) -> bytes:
    """A digest of everything that decides an answer, but for the store.

    What else decides, such as the strategy or how many are wanted, is given as `settings` and
    counts by its `repr`. `Ask.known` is left out, as it follows from the rest and the store.
    """
    digest = hashlib.blake2b(digest_size=32)
    for part in (ask.states, ask.mask, ask.sessions, ask.token_ids, ask.before):
        if part is None:
            digest.update(b"none;")
            continue
        # Dtype and shape are part of it: without them two questions could have the same bytes.
        digest.update(f"{part.dtype}{list(part.shape)};".encode())
        flat = part.detach().cpu().contiguous().view(-1)
        if len(flat):
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    digest.update(repr((ask.task, settings)).encode())
    return digest.digest()


def version_of(store: Any) -> tuple[int, int]:
    """What differs whenever a store was written to, moved within, emptied or let go on.

    The store has a `ledger`, which counts its changes, and a `clock`.
    """
    return store.ledger.changes, store.clock
