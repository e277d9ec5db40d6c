"""Runs in the environment of kvpress: prefills a text under a press, and answers about it.

A program by itself, without `cmr`: requests come as JSON lines on standard input, an answer to each
goes to standard output. Positions are those of the whole text, as kvpress has them by default.
"""

from __future__ import annotations

import json
import os
import sys
import time
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

    def prefill(self, name: str, ids: list[int], press: str, share: float) -> dict[str, Any]:
        """Reads token ids with that press of kvpress, which keeps `share` of their keys.

        The text is held under a name, in place of another one of that name.
        """
        import kvpress
        from transformers import DynamicCache

        began = time.perf_counter()
        cache = DynamicCache()
        with getattr(kvpress, press)(compression_ratio=1 - share)(self.model):
            # Without the head: the logits of a long text take more room than its keys and values.
            self.model.model(input_ids=self._row(ids), past_key_values=cache)
        seconds = time.perf_counter() - began
        self.texts[name] = cache, len(ids)
        layers = cache.layers
        return {
            "seconds": seconds,
            "kept_tokens": max(layer.keys.shape[-2] for layer in layers),
            "kept_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
        }

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
            elif "press" in request:
                found = held.prefill(**request)
            else:
                found = held.answer(**request)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
