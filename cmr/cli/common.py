"""What the commands share: the model, documents, prompts, one answer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmr.cli.errors import UsageError
from cmr.cli.input.gguf import folder_of
from cmr.cli.input.hub import only_here
from cmr.cli.talk.interrupts import Stop
from cmr.demo import load_smollm2, smollm2
from cmr.demo.conversion import quick_dtype, quiet


@dataclass
class Answer:
    """One generated answer: its text without special tokens, and its token ids as generated.

    `seconds` are those of the prompt and all tokens, `recalled` the passages that were read
    meanwhile, best first, and `cache` has the keys and values of all tokens; `stopped`: Ctrl-C
    ended it.
    """

    text: str
    token_ids: list[int]
    seconds: float
    recalled: list[Any]
    cache: Any
    stopped: bool = False

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second, the prompt's time included."""
        return len(self.token_ids) / self.seconds if self.seconds else 0.0


def load_model(name: str | None) -> tuple[Any, Any]:
    """The decoder and its tokenizer: a folder, a GGUF file or a name that transformers knows."""
    if name is None:
        return load_smollm2()
    import transformers

    folder = folder_of(name)
    tokenizer = load_tokenizer(folder)
    # Converted files are kept in bfloat16, which not every CPU is quick in.
    converted = folder != name and not torch.cuda.is_available()
    try:
        # Its bar for the weights would stand on standard error, also in a pipe.
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=quick_dtype() if converted else "auto",
                local_files_only=only_here(folder),
            )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--model {name}: cannot be loaded as a decoder: {whole(error)}"
        ) from error
    # The whole model on one GPU: who wants it spread over several uses the library.
    if torch.cuda.is_available():
        model.to("cuda")
    return model.eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model: a folder or a name that transformers knows."""
    # In front of transformers, which takes seconds to load.
    offline = only_here(name)
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        reason = whole(error)
        raise UsageError(f"--model {name}: its tokenizer cannot be loaded: {reason}") from error


def load_vocabulary(name: str | None) -> Any:
    """What turns a model's token ids into text, by `decode(ids, skip_special_tokens=...)`.

    Of the small model where `name` is None, which is converted if it was not yet.
    """
    if name is None:
        if not smollm2.is_cached():
            return load_smollm2()[1]
        name = str(smollm2.cache_folder(smollm2.find_gguf()))
    # Of a file of the tokenizers package that package alone makes it: transformers takes several
    # seconds more.
    name = folder_of(name)
    file = Path(name) / "tokenizer.json"
    if not file.is_file():
        return load_tokenizer(name)
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:
        # The package raises nothing more special.
        raise UsageError(f"--model {name}: {file.name}: {whole(error)}") from error


def whole(error: BaseException) -> str:
    """All that an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def require_writable(option: str, folder: Path) -> None:
    """Raises UsageError where nothing can be written in a folder, or in the nearest there is."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{option}: nothing can be written in {there}")


PIECE = 1 << 20
"""Characters that are encoded at once: of each token a tokenizer notes some hundred bytes."""


def encoded(tokenizer: Any, text: str, **options: bool) -> torch.Tensor:
    """Token ids ``[1, T]`` of a text, however long."""
    rows = []
    for piece in _pieces(text):
        ids: torch.Tensor = tokenizer(piece, return_tensors="pt", **options).input_ids
        rows.append(ids)
        # Only the first one is a beginning.
        options["add_special_tokens"] = False
    return torch.cat(rows, dim=1)


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces, cut in front of a word where there are words."""
    start = 0
    while len(text) - start > PIECE:
        at = text.rfind(" ", start + PIECE // 2, start + PIECE)
        end = at if at > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


# Tokens between two looks at what is recalled: looking decodes the passages.
LOOK_EVERY = 8


class Listener:
    """A transformers streamer that hands tokens on and notes what was recalled meanwhile."""

    def __init__(self, memory: Any, on_token: Callable[[int], None] | None = None) -> None:
        self._memory = memory
        self._on_token = on_token
        self._prompt_seen = False
        self._tokens = 0
        self._passages: dict[tuple[int, int], Any] = {}

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt, then each new token."""
        # `generate` hands over the prompt first.
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if self._memory is not None and self._tokens % LOOK_EVERY == 0:
            for passage in next(iter(self._memory.recalled), []):
                key = (passage.start, passage.end)
                # The same passage may be read at several steps: its best score stands for it.
                known = self._passages.get(key)
                if known is None or passage.score > known.score:
                    self._passages[key] = passage
        self._tokens += 1
        if self._on_token is not None:
            for token in value.reshape(-1).tolist():
                self._on_token(token)

    def end(self) -> None:
        """Called by ``generate`` at the end."""

    @property
    def passages(self) -> list[Any]:
        """Every passage that was read, the best score first."""
        return sorted(self._passages.values(), key=lambda passage: -passage.score)


@dataclass(frozen=True)
class Speaker:
    """A decoder that answers, with its tokenizer and its memory; None: no recall is noted."""

    model: Any
    tokenizer: Any
    memory: Any
    max_new_tokens: int

    def encode(self, question: str) -> torch.Tensor:
        """Token ids ``[1, T]`` of a prompt: the chat template if there is one, else plain."""
        if getattr(self.tokenizer, "chat_template", None):
            asked = [{"role": "user", "content": question}]
            text = self.tokenizer.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True
            )
            # The template has written the special tokens already.
            return encoded(self.tokenizer, text, add_special_tokens=False)
        return encoded(self.tokenizer, f"Question: {question}\nAnswer:")

    @torch.inference_mode()
    def answer(
        self,
        input_ids: torch.Tensor,
        cache: Any = None,
        on_token: Callable[[int], None] | None = None,
        stop: Stop | None = None,
    ) -> Answer:
        """Generate through the stock ``generate``; with a last answer's cache it goes on.

        Ctrl-C ends it early where it is generated inside of `stoppable`, which gives `stop`.
        """
        listener = Listener(self.memory, on_token)
        input_ids = input_ids.to(self.model.device)
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        # Greedy, so that the same question gets the same answer, with and without memory.
        began = time.perf_counter()
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=cache,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            pad_token_id=end if pad is None else pad,
            streamer=listener,
            stopping_criteria=None if stop is None else [stop],
        )
        seconds = time.perf_counter() - began
        new = output.sequences[0, input_ids.shape[1] :].tolist()
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        stopped = stop is not None and stop.asked
        return Answer(text, new, seconds, listener.passages, output.past_key_values, stopped)
