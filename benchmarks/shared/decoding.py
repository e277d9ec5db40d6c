"""Single decode steps of a model with a memory attached, through the public interface only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import cmr

WINDOW = 512
VOCABULARY = 1000
SETTINGS: dict[str, Any] = {
    "strict": True,
    "window": WINDOW,
    # Whatever is asked for: something is recalled, and every layer's part of it is read.
    "threshold": 0.0,
    "ratio": 0.0,
    "memory_weight": 0.5,
}


def tiny_model(device: str = "cpu", dtype: torch.dtype = torch.bfloat16, layers: int = 8) -> Any:
    """A small Llama with random weights, always the same ones: shapes and wiring, no language."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=2048,
        bos_token_id=1, eos_token_id=None, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().to(device)


def some_text(tokens: int, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    """Random token ids [tokens] without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (tokens,), generator=generator)


@dataclass
class Decoding:
    """A prompt's cache and the tokens that follow it, one step each.

    Attributes:
        model: the model.
        cache: its keys and values so far.
        token: [batch, 1], the next input.
        logits: [batch, vocabulary] of the last step.
    """

    model: Any
    cache: Any
    token: torch.Tensor
    logits: torch.Tensor

    def step(self) -> torch.Tensor:
        """One token further; greedy, no host sync of ours. Returns its logits."""
        out = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True)
        self.logits = out.logits[:, -1]
        self.token = self.logits.argmax(-1, keepdim=True)
        return self.logits

    def steps(self, count: int) -> torch.Tensor:
        """`count` tokens further; the logits of the last."""
        for _ in range(count):
            self.step()
        return self.logits


def begin(model: Any, prompt: torch.Tensor) -> Decoding:
    """Runs the prompt through the model.

    Args:
        model: the model, with or without a memory.
        prompt: token ids, [tokens] or [batch, tokens].
    """
    ids = torch.atleast_2d(prompt).to(model.device)
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    logits = out.logits[:, -1]
    return Decoding(model, out.past_key_values, logits.argmax(-1, keepdim=True), logits)


@contextmanager
def remembering(
    model: Any, stored: torch.Tensor, sessions: Sequence[str] | None = None, **settings: Any
) -> Iterator[cmr.Memory]:
    """The model with a memory that has read `stored` [tokens], of a session if one is named."""
    with cmr.attach(model, **{**SETTINGS, **settings}) as memory:
        memory.read(stored, sessions=sessions)
        yield memory


def gate(memory: cmr.Memory) -> float:
    """The share of attention that the last step gave to memory; 0 when it recalled nothing."""
    passages = memory.recalled
    return passages[0][0].gate if passages and passages[0] else 0.0
