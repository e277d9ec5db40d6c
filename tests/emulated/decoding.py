"""What a model that decodes with a memory takes on the emulated GPU, by the kind of forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

import cmr
from tests.emulated.device import DEVICE, Count, Device, moved

LAYERS = 4
VOCABULARY = 500
PROMPT, STORED = 40, 4_000
SETTINGS: dict[str, Any] = {"threshold": 0.0, "ratio": 0.0, "target_layers": list(range(LAYERS))}
MOST_STEPS = 120


class Words:
    """A tokenizer of words and marks without any meaning, always the same ones."""

    all_special_ids = (0, 1, 2)

    def __init__(self) -> None:
        letters = torch.randint(0, 26, (VOCABULARY, 5), generator=torch.Generator().manual_seed(3))
        self.words = [" " + "".join(chr(97 + n) for n in row) for row in letters.tolist()]
        self.words[10::20] = ["."] * len(self.words[10::20])
        self.words[20::100] = ["?"] * len(self.words[20::100])

    def __len__(self) -> int:
        return VOCABULARY

    def decode(self, row: Sequence[int]) -> str:
        return self.batch_decode([row])[0]

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(self.words[n] for n in row) for row in rows]


def llama(layers: int = LAYERS) -> nn.Module:
    """A small Llama with random weights, always the same ones, in bfloat16."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=8, max_position_embeddings=8192,
        bos_token_id=1, eos_token_id=None, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(7)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def some_text(tokens: int, seed: int) -> torch.Tensor:
    """Random token ids `[1, tokens]` on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (1, tokens), generator=generator)


class Decoding:
    """A text that goes on, token by token.

    Attributes:
        cache: its keys and values.
        logits: `[1, vocabulary]` of the last forward.
        count: what that took.
    """

    def __init__(
        self,
        device: Device,
        model: nn.Module,
        seed: int = 1,
        prompt: torch.Tensor | None = None,
    ) -> None:
        self._device, self._model = device, model
        self.cache: Any = None
        self._next = (some_text(PROMPT, seed) if prompt is None else prompt).to(DEVICE)
        self.step()

    def step(self) -> Count:
        """One forward: the first is that of the prompt. Returns what it took."""
        with self._device.counting() as self.count:
            out = self._model(self._next, past_key_values=self.cache, use_cache=True)
            self._next = out.logits[:, -1:].argmax(-1)
        self.cache, self.logits = out.past_key_values, out.logits[:, -1]
        return self.count


def counts_alone(device: Device, model: nn.Module) -> dict[str, Count]:
    """Counts of a prompt and of a step without a memory."""
    run = Decoding(device, model)
    return {"prompt": run.count, "step": run.step()}


def counts_of(device: Device, model: nn.Module, **settings: Any) -> dict[str, Count]:
    """Counts of a prompt, a plain step, one that searches, and one in which blocks leave.

    Of all but the prompt those of the second one, when what is made once was made.
    """
    with cmr.attach(model, **{**SETTINGS, "window": 48, "refresh": 16, **settings}) as memory:
        memory.read(some_text(600, seed=2))
        Decoding(device, model, seed=3)  # what the first prompt makes once
        run = Decoding(device, model)
        found, seen = {"prompt": run.count}, dict.fromkeys(("step", "search", "leaving"), 0)
        for _ in range(MOST_STEPS):
            count = run.step()
            searched, left = "block_maxima" in count.names, "ring_link" in count.names
            if searched and left:
                continue
            kind = "search" if searched else "leaving" if left else "step"
            seen[kind] += 1
            if seen[kind] == 2:
                found[kind] = count
            if min(seen.values()) >= 2:
                break
        assert memory.recalled[0], "nothing was read: the counts say nothing"
        missing = {kind for kind, number in seen.items() if number < 2}
        assert not missing, f"never twice: {missing}"
    return found


def count_of_reading(device: Device, model: nn.Module, **settings: Any) -> Count:
    """Count of reading a long text, the first one of a memory."""
    with cmr.attach(model, **{**SETTINGS, "window": 512, **settings}) as memory:
        with device.counting() as count:
            memory.read(some_text(STORED, seed=2))
        assert memory.tokens == STORED
    return count


def on_emulated(device: Device, layers: int = LAYERS) -> nn.Module:
    """The model of `llama` on the emulated GPU."""
    return moved(llama(layers))
