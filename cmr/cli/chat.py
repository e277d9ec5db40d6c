"""``cmr chat``: one conversation without a limit; all that was said becomes memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from cmr.cli.common import Answer, Speaker, encoded
from cmr.cli.display import console, counted, passages
from cmr.cli.errors import UsageError
from cmr.cli.input.pipe import PIPE
from cmr.cli.opened import opened
from cmr.cli.settings import Settings
from cmr.cli.talk.excerpts import words_of
from cmr.cli.talk.figures import as_json, as_table
from cmr.cli.talk.interrupts import stoppable

HELP = (
    "/quit ends (with --save it is saved then), /stats shows the memory, /recalled what the last "
    "answer read, /help this; Ctrl-C stops an answer"
)


class Conversation:
    """A running conversation over one key-value cache.

    `recalled` are the passages that the last answer read, `words` those that were said in it and
    in what it answers.
    """

    def __init__(self, speaker: Speaker) -> None:
        self.recalled: list[Any] = []
        self.words: list[str] = []
        self._speaker, self._tokenizer = speaker, speaker.tokenizer
        self._messages: list[dict[str, str]] = []
        self._fed = ""
        self._ids = torch.empty(1, 0, dtype=torch.long, device=speaker.model.device)
        self._cache: Any = None

    @property
    def tokens(self) -> int:
        """Tokens fed and generated so far."""
        return int(self._ids.shape[1])

    def say(self, text: str, on_text: Any) -> Answer:
        """Answer a message, handing each piece of text to ``on_text`` as it comes.

        Ctrl-C ends the answer; what was said of it until then belongs to the conversation.
        """
        ids = torch.cat([self._ids, self._encode(text).to(self._ids.device)], dim=1)
        pieces = _Pieces(self._tokenizer, on_text)
        with stoppable() as stop:
            found = self._speaker.answer(ids, self._cache, pieces.add, stop)
        pieces.finish()
        self._cache, self.recalled = found.cache, found.recalled
        self.words = words_of(text, found.text)
        self._ids = torch.cat([ids, ids.new_tensor([found.token_ids])], dim=1)
        self._messages.append({"role": "assistant", "content": found.text})
        # With special tokens, as the template writes them in front of the next turn.
        self._fed += self._tokenizer.decode(found.token_ids, skip_special_tokens=False)
        return found

    def _encode(self, text: str) -> torch.Tensor:
        """Token ids ``[1, T]`` of what the template adds for one more message."""
        self._messages.append({"role": "user", "content": text})
        if not getattr(self._tokenizer, "chat_template", None):
            added = f"{chr(10) if self._fed else ''}User: {text}\nAssistant:"
        else:
            whole = self._tokenizer.apply_chat_template(
                self._messages, tokenize=False, add_generation_prompt=True
            )
            if whole.startswith(self._fed):
                added = whole[len(self._fed) :]
            else:
                # Templates that rewrite earlier turns: this turn alone, after what was said.
                added = self._tokenizer.apply_chat_template(
                    self._messages[-1:], tokenize=False, add_generation_prompt=True
                )
        self._fed += added
        return encoded(self._tokenizer, added, add_special_tokens=False)


class _Pieces:
    """Turns tokens into text as they come; half a character waits for its other half."""

    def __init__(self, tokenizer: Any, on_text: Any) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._waiting: list[int] = []
        self._shown = ""

    def add(self, token: int) -> None:
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting, skip_special_tokens=True)
        # A replacement character at the end is the first half of one that is not whole yet.
        if not text.endswith("\ufffd"):
            self._show(text)
        # Begun anew at each line, or every token would decode the whole answer again.
        if text.endswith("\n"):
            self._waiting, self._shown = [], ""

    def finish(self) -> None:
        self._show(self._tokenizer.decode(self._waiting, skip_special_tokens=True))

    def _show(self, text: str) -> None:
        if len(text) > len(self._shown):
            self._on_text(text[len(self._shown) :])
            self._shown = text


def run(settings: Settings, documents: list[Path]) -> None:
    """Load, read the documents if any, answer until the user ends, and save."""
    if PIPE in documents:
        raise UsageError("--document -: standard input is what you say in a chat; give a file")
    out = console()
    # What is still in the window would be missing from what is saved.
    settings = replace(settings, overrides={"remember": "all", **settings.overrides})
    with opened(out, settings, documents, may_begin=True) as speaker:
        out.print(f"[dim]{HELP}[/dim]")
        talk(out, Conversation(speaker), speaker.memory)


def talk(out: Console, conversation: Conversation, memory: Any) -> None:
    """Read lines, obey commands, answer everything else, until /quit or the end of input."""
    interrupted = False
    while True:
        try:
            line = out.input("[bold cyan]>[/bold cyan] ").strip()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:
            # One may have been meant for an answer that was just over.
            out.print()
            if interrupted:
                return
            interrupted = True
            out.print("[dim]Ctrl-C once more, Ctrl-D or /quit ends the chat[/dim]")
            continue
        interrupted = False
        if line in ("/quit", "/exit"):
            return
        if line == "/help":
            out.print(f"[dim]{HELP}[/dim]")
            continue
        if line in ("/stats", "/stats --json"):
            stats = memory.stats()
            if line == "/stats":
                out.print(as_table(conversation.tokens, stats))
            else:
                out.print(as_json(conversation.tokens, stats), markup=False, soft_wrap=True)
        elif line == "/recalled":
            if conversation.recalled:
                out.print(passages(conversation.recalled, conversation.words, limit=8))
            else:
                out.print("[dim]the last answer read nothing from memory[/dim]")
        elif line.startswith("/"):
            out.print(f"[dim]unknown command {escape(line)}; {HELP}[/dim]")
        elif line:
            found = conversation.say(line, lambda text: _write(out, text))
            out.print()
            out.print(
                f"[dim]{found.tokens_per_second:.1f} tokens/s · "
                f"{counted(len(found.recalled), 'passage')} recalled"
                f"{' · stopped' if found.stopped else ''}[/dim]"
            )


def _write(out: Console, text: str) -> None:
    out.file.write(text)
    out.file.flush()
