"""Tiny random decoders, one of each kind that the memory tells apart, and random texts for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

VOCABULARY = 200
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
}
TOKENS: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    # Large enough that attention is far from uniform: a wrong key shows in the logits.
    "initializer_range": 0.15,
}
FAMILIES = ("llama", "mistral", "qwen3", "gemma3", "gpt2")
"""Each sees further than any text here; some layers of `SLIDING` see only `SPAN` tokens."""
SLIDING = ("mistral-sliding", "gemma3-sliding")
SPAN = 24
LAYERS = tuple(range(SHAPE["num_hidden_layers"]))

READS_ALL: dict[str, Any] = {
    "target_layers": LAYERS,
    "memory_weight": 0.5,
    "threshold": 0.0,
    "gain": 0.0,
    "neighbours": 8,
    "sink_guard": 0,
}
"""Settings under which every layer reads all of a short memory as if it stood in the window."""


def build(name: str) -> nn.Module:
    """A decoder of the family, float32, always the same weights."""
    import transformers

    family, _, sliding = name.partition("-")
    span = SPAN if sliding else 1024
    torch.manual_seed(7)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=6, n_head=4, n_positions=256, **TOKENS
        )
    elif family == "mistral":
        config = transformers.MistralConfig(**SHAPE, **TOKENS, sliding_window=span)
    elif family == "qwen3":
        config = transformers.Qwen3Config(**SHAPE, **TOKENS)
    elif family == "gemma3":
        kinds = ["sliding_attention", "full_attention"] * 3
        config = transformers.Gemma3TextConfig(
            **SHAPE, **TOKENS, sliding_window=span, layer_types=kinds, query_pre_attn_scalar=16
        )
    else:
        config = transformers.LlamaConfig(**SHAPE, **TOKENS)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def text(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids without special tokens, `[*shape]` int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, shape, generator=generator)


def padded(texts: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `position_ids` of texts of different lengths."""
    longest = max(len(ids) for ids in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(texts):
        at = slice(longest - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, at], mask[row, at] = tokens, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def stepwise(model: nn.Module, ids: torch.Tensor, prompt: int, **kwargs: Any) -> torch.Tensor:
    """Logits `[batch, tokens, vocabulary]` of `ids`, token by token behind a prompt."""
    out = model(ids[:, :prompt], use_cache=True, **kwargs)
    logits, cache = [out.logits], out.past_key_values
    for at in range(prompt, ids.shape[1]):
        out = model(ids[:, at : at + 1], past_key_values=cache, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def greedy(model: nn.Module, ids: torch.Tensor, tokens: int = 12, **kwargs: Any) -> torch.Tensor:
    """What `generate` adds to `ids`, greedily."""
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, **kwargs)
    return out[:, ids.shape[1] :]
