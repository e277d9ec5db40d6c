"""Tiny random decoders, one of each kind that the memory tells apart, and random texts for them."""

from __future__ import annotations

import copy
import inspect
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
_SCALED = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 32,
    "llama_4_scaling_beta": 0.5,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 1.7, 1.8, 1.9, 2.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 12.0],
    "original_max_position_embeddings": 32,
    "factor": 16.0,
}


def _partly(share: float) -> dict[str, Any]:
    """A rotary embedding of a share of each head."""
    return {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": share}


_TURNS = ["sliding_attention", "full_attention"] * 2
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ministral": ("Ministral", {"layer_types": _TURNS}),
    "ministral3": ("Ministral3", {"rope_parameters": _SCALED}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "gemma2": (
        "Gemma2",
        {"layer_types": _TURNS, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0},
    ),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": _partly(0.25)}),
    "phi3": ("Phi3", {"rope_parameters": _partly(0.75)}),
    "phi3_long": ("Phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 32}),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1, 0]}),
    "falcon": ("Falcon", {"bias": True}),
    "falcon_heads": ("Falcon", {"multi_query": False, "parallel_attn": False}),
    "falcon_groups": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
"""Families beside `FAMILIES`, with four layers: the configuration's name and what it sets."""
OTHER_LAYERS = tuple(range(4))
OTHERS_SLIDING = ("ministral-sliding", "gemma2-sliding", "phi3-sliding", "mixtral-sliding")
"""Those of them whose sliding layers see only `SPAN` tokens."""
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
    elif family in OTHERS:
        config = _other(family, span)
    else:
        config = transformers.LlamaConfig(**SHAPE, **TOKENS)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if family in OTHERS:
        unequal(model)
    return model.eval()


def unequal(model: nn.Module) -> None:
    """Give norms and biases other numbers than ones and zeros: a norm left out must show."""
    generator = torch.Generator().manual_seed(8)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += torch.empty_like(weight).uniform_(-0.4, 0.4, generator=generator)


def _other(family: str, span: int) -> Any:
    """The configuration of a family of `OTHERS`, with a sliding window where it knows one."""
    import transformers

    name, own = OTHERS[family]
    kind = getattr(transformers, f"{name}Config")
    known = {*inspect.signature(kind).parameters, *TOKENS}
    settings = {**SHAPE, **TOKENS, "num_hidden_layers": 4, "sliding_window": span}
    settings.update(copy.deepcopy(own))  # configurations add to the dictionaries they are given
    if family == "ministral3" and not _scales_by_position():
        settings["rope_parameters"]["llama_4_scaling_beta"] = 0.0
    return kind(**{key: value for key, value in settings.items() if key in known})


def _scales_by_position() -> bool:
    """Whether Ministral 3 scales its queries by the positions that it is given.

    The first releases of transformers 5 count what the cache holds instead.
    """
    from transformers.models.ministral3.modeling_ministral3 import Ministral3Attention

    return "position_ids" in inspect.signature(Ministral3Attention.forward).parameters


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
