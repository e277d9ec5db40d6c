"""A tiny random decoder, for what depends on the memory alone."""

from __future__ import annotations

from typing import Any

import torch


def tiny_llama(seed: int, **shape: int) -> Any:
    """A random Llama, the same for the same seed and shape (fields of `LlamaConfig`)."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        **shape, head_dim=16, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        initializer_range=0.15,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
