"""`Passes`: texts go through a decoder with a memory, and become memory afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from cmr._fork import passing
from cmr.errors import ConfigError
from cmr.integration.capture.leaving_text import SCORE
from cmr.integration.capture.rows import checked
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.decoder.partial_pass import graph_from, states_entering
from cmr.integration.decoder.wrapped import hooked
from cmr.integration.memory import Memory
from cmr.integration.models.feeder import GRADIENT, Feeder
from cmr.integration.requests.scope import Said, call
from cmr.memory.token_scores import gradient_times_state, token_mask, token_scores
from cmr.retrieval.strategies.tasks import settings_of

Sessions = str | Sequence[str] | None
"""One name for all rows, or one a row; None: `str(row)`."""


@dataclass(frozen=True)
class Passed:
    """What a call gave: the decoder's output, and how many `recalls` and `stored_blocks` it made.

    A forward also gives the states in front of the head `[batch, tokens, hidden]`, and the cache
    that the text may go on with.
    """

    output: Any
    counted: dict[str, int]
    states: torch.Tensor | None = None
    cache: Any = None


def forward_tokens(inputs: Mapping[str, Any]) -> int:
    """Tokens that a forward takes, padding not counted. Waits for the device."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if mask is not None:
        return int(mask.sum())
    return (inputs["inputs_embeds"][..., 0] if ids is None else ids).numel()


def generated_tokens(inputs: Mapping[str, Any], output: Any) -> int:
    """Tokens of prompts and answers, padding of the prompts not counted. Waits for the device."""
    # A dictionary where `return_dict_in_generate` asks for one.
    out = output if isinstance(output, torch.Tensor) else output.sequences
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    given = 0 if ids is None else ids.shape[1]
    prompt = given * len(out) if mask is None else int(mask.sum())
    return prompt + len(out) * (out.shape[1] - given)


class Passes:
    """Runs texts through a decoder with a memory, and lets them become memory afterwards.

    What the feeder's scorer needs to know of a text is noted on the way.
    """

    def __init__(self, model: Any, feeder: Feeder) -> None:
        self._model, self._feeder = model, feeder

    @property
    def _memory(self) -> Memory:
        return self._feeder.memory

    def said(self, on: bool, sessions: Sessions, task: str | None) -> Said:
        """What a call says: whether memory is on, whose it is, and what it is about; checked."""
        if not on and (sessions is not None or task is not None):
            raise ConfigError("sessions and task_type say whose memory is read, and memory is off")
        said = Said(active=on)
        if task is not None:
            settings_of(task)  # refuses an unknown one
            said = replace(said, about=(task,), settings={"strategy": "task_specific"})
        if sessions is not None:
            names = (sessions,) if isinstance(sessions, str) else tuple(sessions)
            self._memory._core.table.check(*names)
            said = replace(said, names=names, create=True)
        return said

    def inputs(self, ids: Any, mask: Any, others: dict[str, Any]) -> dict[str, Any]:
        """The decoder's inputs, those of None left out; ids and their mask are checked."""
        if ids is not None:
            ids, mask = checked(ids, mask, self._memory._core.adapter.config.vocab_size)
        inputs = {"input_ids": ids, "attention_mask": mask, **others}
        return {name: value for name, value in inputs.items() if value is not None}

    def forward(self, said: Said, inputs: dict[str, Any]) -> Passed:
        """A forward: exactly the decoder's where `said` turns memory off.

        Without a cache a text is over with the call, and is memory afterwards. With one it goes on,
        and is stored as it leaves the window.
        """
        core = self._memory._core
        recalls, blocks = core.recalls_made, 0
        # The last hidden state is read by a hook: asking for all of them would keep every layer's.
        with call(core, said), self._final_states() as final:
            if said.active and "past_key_values" not in inputs and not inputs.get("use_cache"):
                output, blocks = self._whole(inputs, final)
                cache = None
            else:
                output = self._model(**inputs)
                cache = output.get("past_key_values")
        counted = {"recalls": core.recalls_made - recalls, "stored_blocks": blocks}
        return Passed(output, counted, final[-1], cache)

    def generate(self, said: Said, inputs: dict[str, Any]) -> Passed:
        """A `generate`; prompt and answer are memory afterwards, but for the last token."""
        core = self._memory._core
        recalls, written = core.recalls_made, core.ring.written
        with call(core, said):
            if not said.active:
                output = self._model.generate(**inputs)
            else:
                _require_cache(inputs)
                with self._memory._stepper.following() as caches:
                    output = self._model.generate(**inputs)
                # Prompt and answer stand in the cache yet; they are stored as if they left it.
                for cache in caches:
                    self._memory.absorb(cache)
        blocks = core.ring.written - written if said.active else 0
        return Passed(output, {"recalls": core.recalls_made - recalls, "stored_blocks": blocks})

    @contextmanager
    def _final_states(self) -> Iterator[list[torch.Tensor]]:
        """Takes the states in front of the head, whatever the decoder gives besides."""
        found: list[torch.Tensor] = []
        me = threading.get_ident()

        def note(_: Any, __: Any, output: Any) -> None:
            if threading.get_ident() == me:  # another thread's forward may come by
                found.append(output[0])

        with ExitStack() as hooks, passing(hooks.close):
            hooked(hooks, self._memory._core.adapter.decoder, note, behind=True)
            yield found

    def _whole(self, inputs: dict[str, Any], final: list[torch.Tensor]) -> tuple[Any, int]:
        """A forward over whole texts, and the number of blocks that they became."""
        # What memory stores comes from a cache, so one is made that keeps all of the text.
        inputs = {
            **inputs,
            "past_key_values": DynamicCache(config=self._memory._core.adapter.config),
            "use_cache": True,
        }
        # Nothing leaves the cache on the way, so the text is scored and stored as a whole.
        with self._memory._stepper.following(bounded=False) as caches:
            output = self._scored(inputs, final)
        # Stored only now, after recall, so that a text never reads itself.
        return output, sum(self._memory.absorb(cache) for cache in caches)

    def _scored(self, inputs: dict[str, Any], final: list[torch.Tensor]) -> Any:
        """The forward; what scoring needs of it is noted in the record of its cache."""
        ids = inputs.get("input_ids")
        method = getattr(self._feeder.scorer, "scoring_method", None)
        if method == "gradient_based":
            return self._with_gradients(inputs, final)
        output = self._model(**inputs)
        record = _record(inputs["past_key_values"])
        if method in ("surprise", "hybrid") and record is not None and ids is not None:
            logits = output.logits.detach()
            # With `logits_to_keep` there are too few of them to tell each token's loss.
            if logits.shape[1] == ids.shape[1]:
                record.note(**{f"{SCORE}surprise": _losses(logits, ids, inputs)})
        return output

    def _with_gradients(self, inputs: dict[str, Any], final: list[torch.Tensor]) -> Any:
        """The forward with a graph and a way back; its loss is that of the tokens or the labels."""
        core = self._memory._core
        labels = _labels(inputs)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # autograd could not keep what was made outside
                inputs = {n: x.clone() if isinstance(x, torch.Tensor) else x
                          for n, x in inputs.items()}  # fmt: skip
                labels = labels.clone()
        # Scores of the index layer go with the blocks, those of captured layers with the entries.
        index, adapter = core.layout.index_layer, core.adapter
        wanted = sorted({*self._feeder.layers, index})
        inside = [layer for layer in wanted if layer < adapter.depth]
        # A caller that trains needs the graph once more for its own way back.
        kept = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        # No graph can be made in inference mode, whoever called for it.
        # Its hooks stand on a model that other threads may run, too.
        with core.lock, torch.inference_mode(False), torch.set_grad_enabled(kept):
            first = min([*inside, adapter.depth - 1])
            with graph_from(adapter, first), states_entering(adapter, inside) as states:
                output = self._model(**{**inputs, "labels": labels})
                # What enters no layer but the head has come by the hook on the decoder.
                if adapter.depth in wanted:
                    states[adapter.depth] = final[-1]
            ends = [states[layer] for layer in wanted]
            gradients = torch.autograd.grad(output.loss, ends, retain_graph=kept)
        record = _record(inputs["past_key_values"])
        if record is not None:
            # The loss is a mean over the tokens, and scores are to be those of the sum.
            tokens = int((labels[:, 1:] != -100).sum())
            scores = {
                layer: gradient_times_state(gradient, end) * tokens
                for layer, gradient, end in zip(wanted, gradients, ends, strict=True)
            }
            noted = {f"{GRADIENT}{layer}": score for layer, score in scores.items()}
            record.note(**noted, **{f"{SCORE}gradient_based": scores[index]})
        # Whoever did not ask for a graph is not to keep it alive.
        if not torch.is_grad_enabled():
            for name in ("loss", "logits"):
                if output.get(name) is not None:
                    output[name] = output[name].detach()
        return output


def _labels(inputs: dict[str, Any]) -> torch.Tensor:
    """The labels of a forward; where there are none its tokens, but for the padding."""
    ids, mask, labels = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels"))
    if labels is not None:
        return labels
    if ids is None:
        raise ValueError(
            "scoring_method='gradient_based' needs a loss: labels or input_ids expected, "
            "got neither"
        )
    return ids if mask is None else ids.masked_fill(mask == 0, -100)


def _losses(logits: torch.Tensor, ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Each token's own loss `[batch, tokens]` float32, that of a row's first one their mean."""
    mask = token_mask(logits, inputs.get("attention_mask"), logits.shape[-1])
    return token_scores("surprise", logits, mask, logits=logits, token_ids=ids.to(logits.device))


def _record(cache: DynamicCache) -> WindowRecord | None:
    """The memory's record of a cache; None where the cache is not followed."""
    owner = getattr(cache.layers[0], "owner", None) if cache.layers else None
    record = getattr(owner, "record", None)
    return record if isinstance(record, WindowRecord) else None


def _require_cache(options: Mapping[str, Any]) -> None:
    """Raises where `generate` would use a cache that memory cannot follow."""
    implementation = options.get("cache_implementation")
    # Static caches are overwritten in place, so what left them could not be told.
    if implementation not in (None, "dynamic", "dynamic_full") or options.get("use_cache") is False:
        raise ConfigError(
            "generate with memory stores from a dynamic cache: use_cache=True and no "
            f"cache_implementation expected, got {implementation or 'use_cache=False'!r}; "
            "use_memory=False generates without"
        )
