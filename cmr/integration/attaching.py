"""`cmr.attach` and `cmr.load`: a memory for a model, new or as it was saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cmr.config import CMRConfig
from cmr.errors import CMRWarning, ConfigError
from cmr.integration.capture.block_writer import Keep
from cmr.integration.capture.lasting import lasting
from cmr.integration.cautions import caution
from cmr.integration.decoder import fingerprint
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.detection import adapt
from cmr.integration.files.folders import open_saved
from cmr.integration.memory import Memory, require_free


def attach(
    model: nn.Module,
    config: CMRConfig | Mapping[str, Any] | None = None,
    *,
    tokenizer: Any = None,
    keep: Keep | None = None,
    **overrides: Any,
) -> Memory:
    """Give a transformers decoder a memory of what leaves its window.

    Args:
        model: a decoder with a language-model head, as `AutoModelForCausalLM` loads it.
        config: settings, or a dictionary of them (`CMRConfig.from_dict`).
        tokenizer: decodes recalled passages for `recalled`, and its chat template tells the search
            which words of a prompt are the question. Nothing else needs it.
        keep: says of token ids `[batch, tokens]` that are about to be stored which may be: a bool
            tensor of their shape, False for those that must never be stored. It is given pieces of
            text as they leave the window.
        **overrides: single settings by name, such as `window=512`, `budget=16_000` (tokens) or
            `memory_weight=0.9`.

    Returns:
        The memory; also a context manager that detaches at its end, after an exception too.

    Warns:
        CMRWarning: of settings that recall nothing or next to nothing where it was measured.

    Raises:
        UnsupportedModelError: when the model is not a decoder, or one of a family that has no row
            in `cmr.integration.decoder.families` and failed to prove itself; see docs/families.md.
        AttachError: when the model has a memory already.
        ConfigError: for a bad value, one that does not fit the model, or one not available.
    """
    if isinstance(config, Mapping):
        config = CMRConfig.from_dict(config)
    elif config is not None and not isinstance(config, CMRConfig):
        raise ConfigError(f"config: a CMRConfig or a dictionary expected, got {config!r}")
    settings = (config or CMRConfig()).with_overrides(**overrides)
    require_free(model)
    return _memory(adapt(model), settings, tokenizer, keep)


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    sessions: Sequence[str] | None = None,
    *,
    key: bytes | str | None = None,
    tokenizer: Any = None,
    keep: Keep | None = None,
    **overrides: Any,
) -> Memory:
    """Attach a memory as `Memory.save` left it, with the settings that it was saved with.

    With all sessions and unchanged budgets, what the model says is bit for bit what it would have
    said then.

    Args:
        path: folder of a saved memory.
        model: the decoder that saved it.
        sessions: names of the sessions wanted; None: all.
        key: of an encrypted one.
        tokenizer: as for `attach`; one of another vocabulary is refused.
        keep: as for `attach`.
        **overrides: settings that differ from the saved ones.

    Warns:
        CMRWarning: as for `attach`.

    Raises:
        StoreError: there is none, it is damaged, of a newer format, or the key is wrong.
        ModelMismatchError: another model or tokenizer saved it, or a session was read with other
            adapters (LoRA) than are in effect.
        UnknownSessionError: it has no such session.
        AttachError, ConfigError, UnsupportedModelError: as for `attach`; nothing is attached then.
    """
    adapter = adapt(model)
    saved = open_saved(path, key, fingerprint.of_model(adapter), tokenizer)
    settings = saved.header.get("config")
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{saved.path}: settings expected in the header")
    # Also what was saved before there were calibrations, or before headers said so.
    if not saved.header.get("calibrated", saved.header.get("index") is not None):
        overrides.setdefault("calibration", "none")
    wanted = CMRConfig.from_dict(settings).with_overrides(**overrides)
    require_free(model)
    memory = _memory(adapter, wanted, tokenizer, keep)
    try:
        memory._files.take(saved, sessions, key)
    except BaseException:
        memory.detach()
        raise
    return memory


def _memory(
    adapter: ModelAdapter, settings: CMRConfig, tokenizer: Any, keep: Keep | None
) -> Memory:
    missing = settings.unavailable()
    if missing:
        raise ConfigError("; ".join(missing))
    with lasting():
        memory = Memory(adapter, settings, tokenizer, keep)
    try:
        caution(memory._core)
    except CMRWarning:  # made an error by the caller's filters: as any other, it leaves no memory
        memory.detach()
        raise
    return memory
