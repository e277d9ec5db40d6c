"""A session as a handle: whose memory is read and written, said by the call itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from cmr.integration.capture.rows import INTEGERS, require_known
from cmr.integration.requests.request import LastForward, new_request, under_way
from cmr.integration.requests.scope import Opener, Said, call
from cmr.integration.reweave.recalled_passage import RecalledPassage, recalled_passages

if TYPE_CHECKING:
    from cmr.integration.conversation import RememberReport
    from cmr.integration.core import Core
    from cmr.integration.forgetter import ForgetReport
    from cmr.integration.memory import Memory
    from cmr.integration.reader import ReadReport
    from cmr.memory.inspection import Inspection


class Session(Opener):
    """One user's memory, or those of a batch, one a row. Made by `Memory.session`.

    Its methods say by themselves whose request they are: they may be called from any thread, task
    or generator, whatever is open around them. As a context manager it says so for everything
    inside; there it holds for the thread or task that entered it and for those that it starts with
    a copy of its context (tasks do that by themselves, `threading.Thread` does not), and leaving in
    another order than entering is a `SessionError`.

    Attributes:
        names: session names, one for all rows or one a row.
    """

    def __init__(
        self,
        memory: Memory,
        names: tuple[str, ...],
        create: bool,
        ephemeral: bool | None,
        ttl: float | None,
    ) -> None:
        self.names, self._memory, self._last = names, memory, LastForward()
        shown = f"memory.session({', '.join(map(repr, names))})"
        said = Said(names=names, create=create, terms=(ephemeral, ttl))
        super().__init__(memory._core, said, shown)
        self._call = Said(names=names, create=create, terms=(ephemeral, ttl), last=self._last)

    @property
    def said(self) -> Said:
        """What the handle says of its requests."""
        return self._said

    # -- running ---------------------------------------------------------------------------------

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, in this session: same arguments, same results.

        Raises:
            AttachError: after `detach`.
            UnknownSessionError: the session has ended.
        """
        self._memory._require_attached()
        with self._said_by_call():
            return self._memory._core.adapter.model.generate(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, in this session: same arguments, same results.

        Raises:
            AttachError: after `detach`.
            UnknownSessionError: the session has ended.
        """
        self._memory._require_attached()
        with self._said_by_call():
            return self._memory._core.adapter.model(*args, **kwargs)

    def read(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        progress: bool | Callable[[int, int], None] = False,
        recall: bool = False,
        keep: torch.Tensor | None = None,
    ) -> ReadReport:
        """Read text of any length into this session; see `Memory.read`."""
        with self._said_by_call():
            return self._memory.read(
                input_ids, attention_mask, progress=progress, recall=recall, keep=keep
            )

    def remember(
        self, messages: torch.Tensor | Sequence[int] | Sequence[Mapping[str, str]]
    ) -> RememberReport:
        """Store a conversation once, however often it is sent: only what is new of it is read.

        It is compared with what this session was sent before, from its beginning on, by `remember`
        or as prompts of `generate`. The system prompt and what the chat template writes around what
        was said are not stored. What was forgotten is nowhere any more, so it is new where it is
        sent again; what was evicted is not stored again.

        Args:
            messages: the whole conversation so far: `{"role": ..., "content": ...}` each, by the
                tokenizer's chat template, or token ids `[tokens]`.

        Raises:
            AttachError: after `detach`, or the model was brought to another dtype or device.
            TypeError, ValueError: it is neither, messages where no chat template is known, ids
                outside the vocabulary, or a handle of several sessions.
            ModelMismatchError: the model has other weights than what is stored was computed with.
            NonFiniteStateError: as for `Memory.read`.
            UnknownSessionError: the session has ended.
        """
        self._only("remember")
        with self._said_by_call():
            return self._memory._remember(messages)

    def finish(self, rows: Sequence[int]) -> int:
        """End rows of the `generate` of this handle under way: what they said becomes memory now.

        For a stopping criterion that ends rows one by one, with `remember="all"`: without it, what
        a batch said becomes memory when all of its rows have ended. Nothing that such a row is
        filled up with is stored.

        Args:
            rows: numbers of rows of the batch.

        Returns:
            The number of blocks stored; 0 where a session of the batch has ended, or nothing was
            run yet.

        Raises:
            SessionError: not called from within a `generate` of this handle, or the memory is not
                attached with `remember="all"`.
            ValueError: the batch has no such row.
        """
        return self._memory._finish(self._last, rows)

    # -- looking ---------------------------------------------------------------------------------

    def search(
        self, text: str | torch.Tensor | Sequence[int], **settings: Any
    ) -> list[RecalledPassage]:
        """The passages that a question finds, best first; nothing is generated or stored.

        Args:
            text: the question: a string, where a tokenizer is known (it is put into the tokenizer's
                chat template where there is one, so that what is found is what a chat that asks it
                would recall), or token ids `[tokens]`.
            **settings: of the search, as for `Memory.retrieval`, such as `blocks=4`.

        Raises:
            AttachError: after `detach`.
            ConfigError: a setting is unknown, fixed while attached, or out of its range.
            TypeError, ValueError: a string where no tokenizer is known, no tokens, ids outside the
                vocabulary, or a handle of several sessions.
            UnknownSessionError: the session has ended.
        """
        self._only("search")
        self._memory._require_attached()
        with self._said_by_call(settings):
            return self._found(text)

    def inspect(self, **wanted: Any) -> Inspection:
        """What this session stores; see `Memory.inspect` for the arguments.

        Raises `ValueError`: this is a handle of several sessions.
        """
        return self._memory.inspect(self._only("inspect"), **wanted)

    @property
    def recalled(self) -> list[list[RecalledPassage]]:
        """Per row of the last forward made by this handle, the passages that it could read."""
        return self._memory._recalled_in(self._last.step)

    @property
    def tokens(self) -> int:
        """Tokens that these sessions store at present."""
        core = self._memory._core
        with core.lock:
            numbers = {core.table.require(name) for name in self.names}
            return sum(core.ring.stored_tokens(number) for number in numbers)

    # -- forgetting ------------------------------------------------------------------------------

    def forget(self, **what: Any) -> ForgetReport:
        """Forget what fits, or without arguments the whole session; see `Memory.forget`.

        Raises `ValueError`: this is a handle of several sessions.
        """
        return self._memory.forget(self._only("forget"), **what)

    # -- inside ----------------------------------------------------------------------------------

    def _said_by_call(self, settings: dict[str, Any] | None = None) -> AbstractContextManager[None]:
        core = self._memory._core
        core.require(self._said)
        if settings:
            core.retriever_with(settings)  # what cannot be is refused before anything is done
            return call(core, Said(**{**vars(self._call), "settings": settings}))
        return call(core, self._call)

    def _found(self, text: str | torch.Tensor | Sequence[int]) -> list[RecalledPassage]:
        core, tokenizer = self._memory._core, self._memory.tokenizer
        ids = _token_ids(core, text, tokenizer).to(core.adapter.input_device)
        request = new_request(core)
        with under_way(core, request), core.lock:
            core.identity.require()
            sessions, _ = request.rows(core.table, 1)
            if not core.wants_recall(sessions, request.retriever):
                return []
            recall = self._memory._stepper.ask_alone(request, ids, sessions)
            names = [core.name_of(number) for number in sessions]
            return [] if recall is None else recalled_passages(recall, {}, names, tokenizer)[0]

    def _only(self, method: str) -> str:
        names = set(self.names)
        if len(names) != 1:
            raise ValueError(f"{method}: a handle of one session expected, got {list(self.names)}")
        return self.names[0]


def _token_ids(
    core: Core, text: str | torch.Tensor | Sequence[int], tokenizer: Any
) -> torch.Tensor:
    """`[1, tokens]` int64 of a question, in the chat template where it is text."""
    if isinstance(text, str):
        if tokenizer is None:
            raise ValueError(
                "text: token ids expected where no tokenizer is known; give one with "
                "attach(..., tokenizer=...)"
            )
        if not text.strip():
            raise ValueError("text: a question expected, got an empty one")
        if core.template is None:
            ids = tokenizer(text)["input_ids"]
        else:
            turns = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
            ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
        text = torch.tensor(ids)
    elif not isinstance(text, torch.Tensor):
        text = torch.tensor(list(text))
    text = text[None] if text.ndim == 1 else text
    if text.dtype not in INTEGERS or text.ndim != 2 or len(text) != 1 or not text.numel():
        raise ValueError(
            f"text: a string or token ids [tokens] expected, got {list(text.shape)} {text.dtype}"
        )
    require_known(text, core.adapter.config.vocab_size)
    return text.long()
