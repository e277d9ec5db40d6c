"""The decoders that are measured: one of eight billion random weights, and the small real one."""

from __future__ import annotations

import gc
from typing import Any

import torch

from benchmarks.shared.decoding import tiny_model
from benchmarks.shared.model import load_model
from tests.gpu.inputs import NotHere

EIGHT_BILLION: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rope_theta": 500000.0,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
"""The shape of a Llama of eight billion weights."""
NEEDED = 20 << 30
"""Bytes that its weights and a forward take."""
NAMES = ("8b-shaped", "smollm2")
TINY = "tiny"


def names(tiny: bool) -> tuple[str, ...]:
    """The models of a run."""
    return (TINY,) if tiny else NAMES


class Models:
    """Makes models on a device and holds one at a time.

    Args:
        kind: of the device.
        free: its free bytes; None where it does not matter.
    """

    def __init__(self, kind: str, free: int | None) -> None:
        self._kind, self._free = kind, free
        self._held: tuple[str, Any] | None = None

    def get(self, name: str) -> Any:
        """The model of a name, in bfloat16; the one before is let go.

        Raises:
            NotHere: it does not fit, or what it comes from is not installed.
        """
        if self._held is None or self._held[0] != name:
            self._held = None
            gc.collect()
            self._held = name, self._made(name)
        return self._held[1]

    def _made(self, name: str) -> Any:
        if name == TINY:
            return tiny_model(self._kind, layers=2)
        if name == "smollm2":
            try:
                return load_model(name)[0].to(self._kind)
            except (ImportError, OSError, RuntimeError) as error:
                raise NotHere(f"the small model: {str(error).splitlines()[0]}") from error
        if self._free is not None and self._free < NEEDED:
            free, needed = (round(size / 1e9) for size in (self._free, NEEDED))
            raise NotHere(f"{needed} GB needed for eight billion weights, {free} GB free")
        return random_model(self._kind, **EIGHT_BILLION)


def random_model(kind: str, **shape: Any) -> Any:
    """A Llama with random weights in bfloat16, made on the device itself.

    Args:
        kind: of the device.
        shape: fields of `LlamaConfig`.
    """
    import transformers

    torch.manual_seed(0)
    with torch.device(kind):
        config = transformers.LlamaConfig(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.eval()
