"""One pass of a text through a model class: recall, the model's own forward, and storing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.integration.capture.leaving_text import SCORE
from cmr.integration.capture.reader import INTEGERS, require_known
from cmr.integration.capture.window_record import WindowRecord
from cmr.integration.core import Core
from cmr.integration.memory import Memory
from cmr.integration.models.feeder import GRADIENT, Scorer
from cmr.integration.models.gradients import scored_forward
from cmr.memory.token_scores import token_mask, token_scores


def checked(
    input_ids: Any, attention_mask: Any, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Token ids `[batch, tokens]` int64 and their mask, before any work is done with them.

    Raises:
        TypeError: `input_ids` is no integer tensor, or the mask none at all.
        ValueError: no tokens, an id outside the vocabulary, or a mask of another shape.
    """
    kind = getattr(input_ids, "dtype", type(input_ids).__name__)
    if kind not in INTEGERS:
        raise TypeError(f"input_ids: an integer tensor of token ids expected, got {kind}")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(
            f"input_ids: [batch, tokens] with a token at least expected, got "
            f"{list(input_ids.shape)}"
        )
    ids = input_ids.long()
    require_known(ids, vocabulary)
    if attention_mask is not None:
        if not isinstance(attention_mask, torch.Tensor):
            what = type(attention_mask).__name__
            raise TypeError(f"attention_mask: a tensor or None expected, got {what}")
        if attention_mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask: {list(ids.shape)} expected (as input_ids), "
                f"got {list(attention_mask.shape)}"
            )
        if not bool(attention_mask.any(-1).all()):
            raise ValueError("attention_mask: a token at least in every row expected, got none")
    return ids, attention_mask


class Passes:
    """Runs texts through a decoder with a memory, and lets them become memory afterwards.

    Args:
        model: the decoder.
        memory: attached to it.
        scorer: relevance of tokens; what its method needs is noted on the way.
        layers: states that are captured.
    """

    def __init__(self, model: Any, memory: Memory, scorer: Scorer, layers: tuple[int, ...]) -> None:
        self._model, self._memory, self.scorer, self._layers = model, memory, scorer, layers

    def whole(self, inputs: dict[str, Any]) -> tuple[Any, int]:
        """A forward over whole texts, which are memory afterwards.

        Recall comes first, so a text never reads itself.

        Args:
            inputs: of the model's forward, without a cache.

        Returns:
            The model's output, whose cache is of no more use, and the number of blocks stored.
        """
        core, stepper = self._memory._core, self._memory._stepper
        inputs = {
            **inputs,
            "past_key_values": DynamicCache(config=core.adapter.config),
            "use_cache": True,
        }
        with stepper.following(bounded=False) as caches:
            output = self._scored(core, inputs)
        blocks = sum(self._memory.absorb(cache) for cache in caches)
        return output, blocks

    def generate(self, inputs: dict[str, Any]) -> tuple[Any, int]:
        """`generate` of the model; prompt and answer are memory afterwards, but for the last token.

        Args:
            inputs: of the model's `generate`.

        Returns:
            What it gives, and the number of blocks stored.
        """
        core = self._memory._core
        written = core.ring.written
        with self._memory._stepper.following() as caches:
            output = self._model.generate(**inputs)
        for cache in caches:
            self._memory.absorb(cache)
        return output, core.ring.written - written

    def _scored(self, core: Core, inputs: dict[str, Any]) -> Any:
        """The forward; what scoring needs of it is noted in the record of its cache."""
        ids = inputs.get("input_ids")
        method = getattr(self.scorer, "scoring_method", None)
        if method == "gradient_based":
            return self._with_gradients(core, inputs)
        output = self._model(**inputs)
        wants = method in ("surprise", "hybrid")
        record = _record(inputs["past_key_values"])
        if wants and record is not None and ids is not None:
            logits = output.logits.detach()
            if logits.shape[1] == ids.shape[1]:
                record.note(**{f"{SCORE}surprise": _losses(logits, ids, inputs)})
        return output

    def _with_gradients(self, core: Core, inputs: dict[str, Any]) -> Any:
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        given = inputs.get("labels")
        if given is None and ids is None:
            raise ValueError(
                "scoring_method='gradient_based' needs a loss: labels or input_ids expected, "
                "got neither"
            )
        labels = given
        if labels is None:
            assert ids is not None
            labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):  # autograd could not keep what was made outside
                inputs = {n: x.clone() if isinstance(x, torch.Tensor) else x
                          for n, x in inputs.items()}  # fmt: skip
                labels = labels.clone()
        seen: list[torch.Tensor] = []

        def look(_: nn.Module, __: Any, output: Any) -> None:
            seen.append(output[0])

        handle = core.adapter.decoder.register_forward_hook(look)
        try:
            output, found = scored_forward(
                core.adapter,
                lambda: self._model(**{**inputs, "labels": labels}),
                {*self._layers, core.layout.index_layer},
                lambda: seen[-1],
                int((labels[:, 1:] != -100).sum()),
            )
        finally:
            handle.remove()
        record = _record(inputs["past_key_values"])
        if record is not None:
            noted = {f"{GRADIENT}{n}": scores for n, scores in found.items()}
            record.note(**noted, **{f"{SCORE}gradient_based": found[core.layout.index_layer]})
        if not torch.is_grad_enabled():
            for name in ("loss", "logits"):
                if output.get(name) is not None:
                    output[name] = output[name].detach()
        return output


def _losses(logits: torch.Tensor, ids: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Each token's own loss `[batch, tokens]` float32, that of a row's first one their mean."""
    mask = token_mask(logits, inputs.get("attention_mask"), logits.shape[-1])
    return token_scores("surprise", logits, mask, logits=logits, token_ids=ids.to(logits.device))


def _record(cache: DynamicCache) -> WindowRecord | None:
    owner = getattr(cache.layers[0], "owner", None) if cache.layers else None
    record = getattr(owner, "record", None)
    return record if isinstance(record, WindowRecord) else None
