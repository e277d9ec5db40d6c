"""Runs in the environment of kvpress: prefills a text under a press, and answers about it.

A program by itself, without `cmr`: requests come as JSON lines on standard input, an answer to each
goes to standard output. Positions are those of the whole text, as kvpress has them by default.
"""

from __future__ import annotations

import json
import os
import sys
import time
from copy import copy
from importlib.metadata import version
from typing import Any

import torch


class Pressed:
    """A model, and the texts that it holds under presses, by name."""

    def __init__(self, folder: str, dtype: str, device: str, threads: int) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # Beside this file, which is run as a program.
        from weights import weights_digest

        torch.set_num_threads(threads)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = self.model.eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        self.weights = weights_digest(self.model)
        self.texts: dict[str, tuple[Any, int]] = {}

    def prefill(
        self, ids: list[int], presses: dict[str, tuple[str, float]]
    ) -> dict[str, dict[str, Any]]:
        """Reads token ids once, and has several presses of kvpress keep a share of their keys.

        Args:
            ids: of the text.
            presses: by the name that what is kept is held by, what kvpress calls it, and its share.
        """
        import kvpress
        from transformers import DynamicCache

        made = {
            name: getattr(kvpress, press)(compression_ratio=1 - share)
            for name, (press, share) in presses.items()
        }
        beside, cache, began = side_by_side(made), DynamicCache(), time.perf_counter()
        with beside(self.model):
            # Without the head: the logits of a long text take more room than its keys and values.
            self.model.model(input_ids=self._row(ids), past_key_values=cache)
        alone = time.perf_counter() - began - sum(beside.seconds.values())
        found = {}
        for name, kept in beside.layers.items():
            layers = [kept.get(number, layer) for number, layer in enumerate(cache.layers)]
            mine = DynamicCache()
            mine.layers = [copy(layer) for layer in layers]
            self.texts[name] = mine, len(ids)
            found[name] = {
                "seconds": alone + beside.seconds[name],
                "kept_tokens": max(layer.keys.shape[-2] for layer in layers),
                "kept_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
            }
        return found

    def answer(self, name: str, ids: list[int], new_tokens: int) -> dict[str, Any]:
        """Goes on greedily behind a text with these token ids; the text is held as before."""
        began = time.perf_counter()
        cache, length = self.texts[name]
        kept = [layer.keys.shape[-2] for layer in cache.layers]
        said: list[int] = []
        first = 0.0
        while len(said) < new_tokens and not (said and said[-1] in self.ends):
            given = said[-1:] or ids
            start = length + (len(ids) + len(said) - 1 if said else 0)
            places = torch.arange(start, start + len(given), device=self.model.device)[None]
            logits = self.model(
                input_ids=self._row(given), past_key_values=cache,
                position_ids=places, logits_to_keep=1,
            ).logits  # fmt: skip
            said.append(int(logits[0, -1].argmax()))
            first = first or time.perf_counter() - began
        for layer, many in zip(cache.layers, kept, strict=True):
            layer.keys, layer.values = layer.keys[..., :many, :], layer.values[..., :many, :]
        text = self.tokenizer.decode(said, skip_special_tokens=True).strip()
        return {"text": text, "first_seconds": first, "seconds": time.perf_counter() - began}

    def _row(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=self.model.device)


def side_by_side(presses: dict[str, Any]) -> Any:
    """A press that has others do their work side by side: a text is run through the model once.

    What a press keeps changes nothing of what the layers behind it see of the text.
    """
    import kvpress

    class SideBySide(kvpress.BasePress):
        def __init__(self) -> None:
            self.layers: dict[str, dict[int, Any]] = {name: {} for name in presses}
            self.seconds = dict.fromkeys(presses, 0.0)

        def post_init_from_model(self, model: Any) -> None:
            for press in presses.values():
                press.post_init_from_model(model)

        def forward_hook(self, module: Any, input: Any, kwargs: Any, output: Any) -> Any:
            whole = kwargs["past_key_values"]
            for name, press in presses.items():
                began = time.perf_counter()
                # Its own cache: what it takes away is still there for the others.
                mine, layers = copy(whole), self.layers[name]
                layers[module.layer_idx] = copy(whole.layers[module.layer_idx])
                mine.layers = layers
                press.forward_hook(module, input, {**kwargs, "past_key_values": mine}, output)
                self.seconds[name] += time.perf_counter() - began
            return output

    return SideBySide()


@torch.inference_mode()
def main() -> None:
    """Answers each line; the first one says which model."""
    # What libraries print is no answer: it goes where errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    held: Pressed | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if held is None:
                held = Pressed(**request)
                found: dict[str, Any] = {"weights": held.weights}
                found |= {name: version(name) for name in ("kvpress", "transformers", "torch")}
            elif "presses" in request:
                found = held.prefill(**request)
            else:
                found = held.answer(**request)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
