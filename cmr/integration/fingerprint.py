"""What tells one model from another, and one tokenizer from another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from cmr.errors import ModelMismatchError
from cmr.integration.adapter import ModelAdapter
from cmr.integration.placement import named_weights, whole_weight

SAMPLE = 64
"""Numbers looked at of each parameter, spread over it."""
PACKED_ROWS = 32
"""Rows looked at of 4-bit weights: those that bitsandbytes lays out together on a CPU."""
EMBEDDING_SAMPLE = 8_192
"""Numbers looked at of the embeddings for `identity`, spread over them."""
_SMALLEST = 2.0**-14


def of_model(adapter: ModelAdapter) -> dict[str, Any]:
    """Shape, data type and a hash of a sample of all weights: the same in every process.

    Returns:
        Plain JSON.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(named_weights(adapter.model), key=lambda named: named[0]):
        shape, sample = _sample(weight)
        digest.update(f"{name} {list(shape)} {weight.dtype}".encode())
        digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "family": adapter.config.model_type,
        "hidden_size": adapter.hidden,
        "layers": adapter.depth,
        "kv_heads": adapter.kv_heads,
        "head_dim": adapter.head_dim,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "weights": digest.hexdigest(),
    }


def identity(adapter: ModelAdapter) -> str:
    """A hash of what stays the same however a model is loaded: in any dtype, quantised or not.

    It covers the family, the shapes and a sample of the embeddings, which are not quantised,
    rounded to bfloat16. Fine-tuned models whose embeddings were left alone have that of the model
    they were made from.

    Returns:
        64 hexadecimal digits.
    """
    weight = whole_weight(adapter.model.get_input_embeddings())
    flat = weight.reshape(-1)
    sample = flat[:: max(1, flat.numel() // EMBEDDING_SAMPLE)][:EMBEDDING_SAMPLE]
    rounded = sample.to("cpu", torch.bfloat16)
    # What float16 cannot hold with all of bfloat16's digits does not count.
    rounded = torch.where(rounded.abs() < _SMALLEST, torch.zeros_like(rounded), rounded)
    heads = (adapter.heads * adapter.processes, adapter.kv_heads * adapter.processes)
    shape = (adapter.hidden, adapter.depth, *heads, adapter.head_dim)
    digest = hashlib.sha256(f"{adapter.config.model_type} {shape} {list(weight.shape)}".encode())
    digest.update(rounded.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sample(weight: torch.Tensor) -> tuple[torch.Size, torch.Tensor]:
    """Shape of a weight and a few numbers of it.

    Of 4-bit weights, which are laid out anew by the first forward on a CPU, it is how often each
    of the 16 values is found in the first rows: that stays.
    """
    state = getattr(weight, "quant_state", None)
    flat = weight.detach().reshape(-1)
    if state is None:
        return weight.shape, flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
    packed = flat.view(torch.uint8)[: PACKED_ROWS * state.shape[-1] // 2].long()
    found = torch.bincount(torch.cat([packed >> 4, packed & 15]), minlength=16)
    return state.shape, found


def of_tokenizer(tokenizer: Any) -> str | None:
    """A hash of the vocabulary; None where there is no tokenizer."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def require_same(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises `ModelMismatchError` that names the first difference."""
    for name, value in here.items():
        if saved.get(name) != value:
            shown = (
                "other weights of the same shape"
                if name == "weights"
                else f"{name} {value} expected (from this model), got {saved.get(name)}"
            )
            raise ModelMismatchError(f"this memory was saved by another model: {shown}")


def require_same_tokenizer(saved: str | None, here: str | None) -> None:
    """Raises `ModelMismatchError` where both are known and differ."""
    if saved is not None and here is not None and saved != here:
        raise ModelMismatchError(
            "this memory was saved with another tokenizer: its token ids would mean other text"
        )
