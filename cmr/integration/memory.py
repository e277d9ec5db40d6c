"""`cmr.attach` and the memory that it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cmr.config import CMRConfig
from cmr.errors import AttachError, ConfigError
from cmr.integration.adapter import ModelAdapter
from cmr.integration.core import Core
from cmr.integration.generation import GenerationPlug
from cmr.integration.reading import Reader, ReadReport, Rows
from cmr.integration.recalled import RecalledPassage, recalled_passages
from cmr.integration.residual import ResidualReader
from cmr.integration.stepper import Stepper
from cmr.memory.entry import MemoryEntry

ATTACHED = "_cmr_memory"
"""Attribute of a model that has a memory, present only while attached."""


def attach(
    model: nn.Module,
    config: CMRConfig | Mapping[str, Any] | None = None,
    *,
    tokenizer: Any = None,
    **overrides: Any,
) -> Memory:
    """Give a transformers decoder a memory of what leaves its window.

    Args:
        model: a decoder with a language-model head, as `AutoModelForCausalLM` loads it.
        config: settings, or a dictionary of them (`CMRConfig.from_dict`).
        tokenizer: decodes recalled passages for `recalled`; nothing else needs it.
        **overrides: single settings by name, such as `window=512`, `budget=16_000` (tokens) or
            `memory_weight=0.5`.

    Returns:
        The memory; also a context manager that detaches at its end, after an exception too.

    Raises:
        UnsupportedModelError: when the model is not a decoder of a covered family.
        AttachError: when the model has a memory already.
        ConfigError: for a bad value, one that does not fit the model, or one not available.
    """
    if isinstance(config, Mapping):
        config = CMRConfig.from_dict(config)
    elif config is not None and not isinstance(config, CMRConfig):
        raise ConfigError(f"config: a CMRConfig or a dictionary expected, got {config!r}")
    settings = (config or CMRConfig()).with_overrides(**overrides)
    if hasattr(model, ATTACHED):
        raise AttachError("this model has a memory attached already; detach() that one first")
    adapter = ModelAdapter(model)
    missing = settings.unavailable()
    if missing:
        raise ConfigError("; ".join(missing))
    return Memory(adapter, settings, tokenizer)


class Memory:
    """A memory attached to a model. Made by `cmr.attach`.

    Without session names, row i of a batch is session `str(i)`. A row only ever reads what its own
    session stored.
    """

    def __init__(self, adapter: ModelAdapter, config: CMRConfig, tokenizer: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._core = core = Core(adapter, config)
        self._stepper = Stepper(core, config)
        self._residual = ResidualReader(core, self._stepper)
        self._generation = GenerationPlug(core, self._stepper)
        self._reader = Reader(core, config, self._stepper)
        self._stepper.attach()
        self._residual.attach()
        self._generation.attach()
        setattr(adapter.model, ATTACHED, self)
        self._attached = True

    # -- life ------------------------------------------------------------------------------------

    def __enter__(self) -> Memory:
        self._require_attached()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take every hook away; the model is as it was, bit for bit. Safe to call twice."""
        if not self._attached:
            return
        self._generation.detach()
        self._residual.detach()
        self._stepper.detach()
        delattr(self._core.adapter.model, ATTACHED)
        self._attached = False

    @property
    def attached(self) -> bool:
        """Whether the memory is attached to its model."""
        return self._attached

    def pause(self) -> None:
        """Neither capture nor recall until `resume`: the model is exactly itself.

        A cache that is used meanwhile goes on afterwards, and what leaves it is not stored.
        """
        self._require_attached()
        self._core.active = False

    def resume(self) -> None:
        """Go on after `pause`."""
        self._require_attached()
        self._core.active = True

    # -- reading and sessions --------------------------------------------------------------------

    def read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        sessions: Sequence[str] | None = None,
        progress: bool | Callable[[int, int], None] = False,
        recall: bool = False,
    ) -> ReadReport:
        """Read text of any length into memory, window by window.

        Args:
            input_ids: `[tokens]` or `[batch, tokens]` integer token ids.
            attention_mask: the same shape, 0 for padding on either side; None where there is none.
            sessions: a name for each row; they are made when new. Default: the session of the
                surrounding `session(...)`, else `str(row)`.
            progress: True shows a bar; a function is called with tokens done and tokens in all.
            recall: read while recalling: what is stored of a piece is then what the model thought
                of it with older passages of the session in view.

        Raises:
            AttachError: after `detach`.
            TypeError, ValueError: for ids or masks that cannot be read; nothing is stored then.
        """
        self._require_attached()
        vocabulary = self._core.adapter.config.vocab_size
        rows = Rows.pack(input_ids, attention_mask, vocabulary)
        numbers = self._core.sessions_to_write(sessions, len(rows.lengths))
        with self._stepper.alone(), _bar(progress, sum(rows.lengths)) as show:
            return self._reader.read(rows, numbers, show, recall)

    @contextmanager
    def session(self, *names: str, create: bool = False) -> Iterator[Memory]:
        """Whose memory is read and written inside: one name for all rows, or one a row.

        Args:
            *names: session names.
            create: make sessions that do not exist yet.

        Raises:
            UnknownSessionError: for a name that does not exist, unless `create` is true.
        """
        self._require_attached()
        if not names:
            raise ValueError("session() needs at least one name")
        table = self._core.table
        table.check(*names)
        for name in names:
            if create:
                table.create(name)
            else:
                table.require(name)
        before, self._core.named = self._core.named, names
        try:
            yield self
        finally:
            self._core.named = before

    @property
    def sessions(self) -> list[str]:
        """Names of all sessions, oldest first."""
        return self._core.table.names()

    def clear(self, session: str | None = None) -> int:
        """Forget a session, or everything; its slots are zeroed. Returns the blocks emptied.

        A cache that such a session is still using goes on, and what leaves it is not stored.

        Raises:
            UnknownSessionError: for a name that does not exist.
        """
        if session is not None:
            number = self._core.table.remove(session)
            self._stepper.last = None
            return self._core.ring.clear(number)
        self._stepper.last = None
        for name in self.sessions:
            self._core.table.remove(name)
        return self._core.ring.clear()

    # -- looking ---------------------------------------------------------------------------------

    @property
    def recalled(self) -> list[list[RecalledPassage]]:
        """Per row of the last forward, the passages that it could read, best first."""
        step = self._stepper.last
        if step is None:
            return []
        if step.recall is None:
            return [[] for _ in step.sessions]
        names = [self._core.name_of(number) for number in step.sessions]
        return recalled_passages(step.recall, step.gates, names, self.tokenizer)

    def entries(self, session: str | None = None) -> list[MemoryEntry]:
        """The stored blocks, oldest first, of one session or of all."""
        return self._core.entries(session)

    @property
    def tokens(self) -> int:
        """Tokens stored at present."""
        return self._core.ring.stored_tokens()

    @property
    def nbytes(self) -> int:
        """Bytes of the preallocated store."""
        return self._core.ring.nbytes

    def stats(self) -> dict[str, Any]:
        """Counters and sizes; see the keys. Reads the device: for people, not for the hot path."""
        core = self._core
        return {
            "tokens": self.tokens,
            "blocks": sum(core.ring.blocks_of(core.table.find(n)) for n in self.sessions),
            "capacity_tokens": core.ring.slots * core.ring.block_size,
            "sessions": len(self.sessions),
            "written_blocks": core.ring.written,
            "searches": core.searches,
            "recalls": core.recalls_made,
            "bytes": self.nbytes,
            "bytes_per_token": self.nbytes / (core.ring.slots * core.ring.block_size),
            "store": core.store,
            "target_layers": list(core.targets),
            "index_layer": core.index_layer,
            "active": core.active,
        }

    def _require_attached(self) -> None:
        if not self._attached:
            raise AttachError("this memory was detached; attach a new one with cmr.attach(model)")


@contextmanager
def _bar(
    progress: bool | Callable[[int, int], None], total: int
) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar for True, the function itself for a function."""
    if not progress:
        yield None
    elif callable(progress):
        yield progress
    else:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="token", desc="reading") as bar:
            yield lambda done, _: bar.update(done - bar.n)
