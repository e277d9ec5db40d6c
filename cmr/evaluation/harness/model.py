"""The model `cmr` of lm-eval: each item is a session of its own, whose context memory read."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import MODEL_REGISTRY, register_model
from torch.nn import functional
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from cmr.errors import EvaluationError
from cmr.evaluation.prompts import chat_parts, encode
from cmr.integration.attach import attach

LOG = logging.getLogger("cmr")
NAME = "cmr"
_SESSION = "item"
Encoded = tuple[tuple[str, str], list[int], list[int]]


def register() -> None:
    """Has lm-eval know the model by its name; a second call changes nothing."""
    # A registry that is not empty is never filled with lm-eval's own.
    importlib.import_module("lm_eval.models")
    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(MemoryLM)


class MemoryLM(TemplateLM):
    """A decoder with a memory, as lm-eval asks it.

    A context that fits into the window with the reply is a prompt as it stands. Of a longer one all
    up to its last `part` is read into memory, and what follows is asked; where that takes more than
    half of the window, its last half window is. A chat template's opening stands before it again.
    Nothing of an item is left when the next one is asked.

    Args:
        pretrained: a folder or name of transformers, or a model without a memory.
        tokenizer: of the model; None: from the same place.
        part: what a context is parted by.
        max_gen_toks: of a reply, where the task does not say.
        batch_size: 1; items are asked one by one.
        max_batch_size: None or 1, the same.
        device: where the model is; None: where it is loaded. lm-eval's command line says `cuda:0`
            where nobody said anything; without such a device that is the CPU, with a warning.
        dtype: of the weights, as transformers takes it.
        **settings: for `cmr.attach`.

    Raises:
        EvaluationError: another size of batches is asked for.
        ConfigError: a setting is unknown or out of its range.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        part: str = "\n\n",
        max_gen_toks: int = 256,
        batch_size: Any = 1,
        max_batch_size: Any = None,
        device: str | None = None,
        dtype: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("max_batch_size", max_batch_size or 1)):
            if str(size) != "1":
                raise EvaluationError(f"{name}: 1 expected, as items are asked one by one: {size}")
        named = isinstance(pretrained, str)
        model = (
            AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype) if named else pretrained
        )
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            LOG.warning("there is no device %s: the model stays on %s", device, model.device)
            device = None
        self.model = model.eval() if device is None else model.eval().to(device)
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(model.config.name_or_path)
        # A failure that is left out of an answer would be taken for what memory says.
        self.memory = attach(self.model, tokenizer=self.tokenizer, **{"strict": True, **settings})
        self.part, self.max_gen_toks = part, max_gen_toks
        self._read: list[int] = []

    @property
    def eot_token_id(self) -> int:
        """The token that a text ends with."""
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keeps prepared requests apart by."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; special tokens are those that stand in the text."""
        return encode(self.tokenizer, string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Turns as the model's template writes them."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip
        return text

    def parted(self, context: str, room: int) -> tuple[list[int], list[int]]:
        """Token ids that are read, and those that are asked with `room` tokens behind them."""
        ids, window = self.tok_encode(context), self.memory.config.window
        if len(ids) + room <= window:
            return [], ids
        # Trailing separators part nothing.
        at = context.rstrip().rfind(self.part)
        asked = self.tok_encode(context[at + len(self.part) :]) if at > 0 else ids
        if len(asked) > window // 2:
            asked = ids[-(window // 2) :]
            read = ids[: -len(asked)]
        else:
            read = self.tok_encode(context[: at + len(self.part)])
        opening = chat_parts(self.tokenizer)[0] if self.tokenizer.chat_template else []
        if opening and ids[: len(opening)] == opening:
            asked = opening + asked
        return read, asked

    @contextmanager
    def item(self, read: list[int]) -> Iterator[None]:
        """A session that has read that and nothing else."""
        # Choices about one context come one after the other: it is read once.
        if read != self._read or not read:
            self.memory.clear()
            self._read = []
            if read:
                self.memory.read(torch.tensor(read), sessions=[_SESSION])
            self._read = read
        with self.memory.session(_SESSION, create=True):
            yield

    @torch.inference_mode()
    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Replies by stock `generate`, up to the first text that ends them."""
        out = []
        for request in tqdm(requests, disable=disable_tqdm, desc="asking"):
            context, told = request.args
            options = dict(told)
            until = options.pop("until", None) or []
            until = [until] if isinstance(until, str) else list(until)
            tokens = options.pop("max_gen_toks", self.max_gen_toks)
            if not options.get("do_sample"):
                # A temperature of 0 is how tasks ask for greedy replies.
                options = {"do_sample": False}
            read, asked = self.parted(context, tokens)
            ids = torch.tensor([asked], device=self.model.device)
            with self.item(read):
                said = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens,
                    pad_token_id=self.eot_token_id, stop_strings=until or None,
                    tokenizer=self.tokenizer, **options,
                )  # fmt: skip
            self._asked(len(asked) + tokens)
            text = self.tokenizer.decode(said[0, len(asked) :], skip_special_tokens=True)
            for end in until:
                text = text.partition(end)[0]
            self.cache_hook.add_partial("generate_until", request.args, text)
            out.append(text)
        return out

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation its log likelihood, and whether it is the greedy one."""
        out = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm, desc="asking"):
            read, asked = self.parted(texts[0], len(continuation)) if texts[0] else ([], context)
            with self.item(read):
                logits = self.model(self._row(asked + continuation[:-1])).logits
            self._asked(len(asked) + len(continuation))
            found = _scored(logits[0, len(asked) - 1 :], continuation)
            self.cache_hook.add_partial("loglikelihood", texts, found)
            out.append(found)
        return out

    @torch.inference_mode()
    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Of each whole text; every token is foretold from the window and from memory."""
        out, step = [], max(1, self.memory.config.window // 2)
        for request in tqdm(requests, disable=disable_tqdm, desc="asking"):
            ids = self.tok_encode(request.args[0])
            given, total = [self.prefix_token_id, *ids[:-1]], 0.0
            with self.item([]):
                cache = DynamicCache(config=self.model.config)
                for at in range(0, len(ids), step):
                    row = self._row(given[at : at + step])
                    logits = self.model(row, past_key_values=cache, use_cache=True).logits
                    total += _scored(logits[0], ids[at : at + step])[0]
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            out.append(total)
        return out

    def _row(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)

    def _asked(self, tokens: int) -> None:
        # What left the window became memory, too, and is not to be recalled by the next choice.
        if tokens > self.memory.config.window:
            self._read = []


def _scored(logits: torch.Tensor, wanted: list[int]) -> tuple[float, bool]:
    """Log likelihood of tokens by logits `[tokens, vocabulary]`, and whether they are the best."""
    logits = logits[: len(wanted)].float()
    right = torch.tensor(wanted, device=logits.device)
    loss = functional.cross_entropy(logits, right, reduction="sum")
    return -float(loss), bool((logits.argmax(-1) == right).all())
