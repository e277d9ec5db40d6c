"""Models from GGUF files: converted once, kept as safetensors in the cache folder."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cmr._folders import cache_root
from cmr.errors import CMRError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Part of the cache's key: raise it when what is written below changes.
CONVERSION = 1

_log = logging.getLogger(__name__)


class MissingDemoDependencyError(CMRError, ImportError):
    """A package that the model needs is not installed; the message says which."""


def quick_dtype() -> torch.dtype:
    """What small models are loaded in on this CPU: bfloat16, or float32 where that is quicker.

    A CPU without instructions for bfloat16 multiplies matrices of it six times as slowly.
    """
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def cache_folder(name: str, content: Iterable[bytes]) -> Path:
    """Where a converted model lies: one folder per content and major transformers version.

    ``$CMR_CACHE`` if set, else ``$XDG_CACHE_HOME/cmr``, else ``~/.cache/cmr``.

    Args:
        name: of the model, the folder's name begins with it.
        content: the file's bytes in pieces, or what stands for them.
    """
    import transformers

    # By content and version: a new file, or weights that another version would read differently,
    # get a folder of their own.
    digest = hashlib.blake2b(digest_size=6)
    digest.update(f"{CONVERSION}:{transformers.__version__.split('.')[0]}:".encode())
    for piece in content:
        digest.update(piece)
    return cache_root() / f"{name}-{digest.hexdigest()}"


def is_complete(folder: Path) -> bool:
    """Whether a converted model lies there."""
    names = ("config.json", "tokenizer.json", "model.safetensors")
    return all((folder / name).is_file() for name in names)


def convert_into(folder: Path, convert: Callable[[], tuple[Any, Any]]) -> None:
    """Convert next to ``folder``, then rename: nobody ever sees half a model.

    Two processes may do this at once: the first to finish gives its folder the final name.

    Args:
        folder: a `cache_folder`.
        convert: gives the model and its tokenizer.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        # The conversion draws a tqdm bar that nothing switches off.
        with quiet(), redirect_stderr(io.StringIO()):
            model, tokenizer = convert()
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        if folder.exists() and not is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process was first; its folder holds the same weights.
            if not is_complete(folder):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_gguf(gguf_file: Path, name: str) -> tuple[Any, Any]:
    """The model in a GGUF file, in bfloat16, and its tokenizer as transformers reads it.

    Args:
        gguf_file: the file.
        name: what the model calls itself from now on.

    Raises:
        MissingDemoDependencyError: ``gguf`` or ``accelerate`` is not installed.
    """
    import transformers

    # transformers asks for both when it reads a GGUF file.
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingDemoDependencyError(
                f"converting {gguf_file.name} needs the package {package}: "
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
    model.config._name_or_path = name
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def load_converted(
    folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in a folder and its tokenizer, on the CPU, in evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), tokenizer


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
