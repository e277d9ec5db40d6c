"""`cmr.attach` and `cmr.load`: a memory for a model, new or as it was saved."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from cmr._warning import warn
from cmr.config import STATE_METHODS, CMRConfig, OptimizationConfig
from cmr.errors import AttachError, ConfigError
from cmr.integration.capture.block_writer import Keep
from cmr.integration.core import Core
from cmr.integration.decoder import fingerprint
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.detection import adapt
from cmr.integration.files.folders import open_saved
from cmr.integration.files.room import byte_limit, require_room
from cmr.integration.files.settings import from_header
from cmr.integration.idle_settings import caution_idle
from cmr.integration.memory import ATTACHED, Memory, require_free
from cmr.integration.window.lasting import lasting

LEAST_WEIGHT = 0.5
"""Fixed `memory_weight` below which hardly anything is recalled."""


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
        CMRWarning: of settings that recall nothing or next to nothing where it was measured, and of
            those that change nothing under the others.

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
    return attach_with(model, (config or CMRConfig()).with_overrides(**overrides), tokenizer, keep)


def attach_with(
    model: nn.Module,
    settings: CMRConfig,
    tokenizer: Any = None,
    keep: Keep | None = None,
    elsewhere: Container[str] = (),
) -> Memory:
    """`attach` with settings that are ready.

    `elsewhere`: names of those that something beside the memory looks at, too; with
    'optimization' among them whoever calls this steers the memory.
    """
    require_free(model)
    if "optimization" in elsewhere:
        settings = replace(settings, optimization=OptimizationConfig())
    return _memory(adapt(model), settings, tokenizer, keep, elsewhere)


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    sessions: Sequence[str] | None = None,
    *,
    key: bytes | str | None = None,
    tokenizer: Any = None,
    keep: Keep | None = None,
    max_bytes: int | str | None = None,
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
        max_bytes: what the memory may take, all tiers together: bytes, or a size such as '8GiB'.
            None: what is free where each tier lies.
        **overrides: settings that differ from the saved ones. No file is named in a saved memory:
            a calibration of one's own is given again, and so are `long_term_folder` and `graphs`.

    Warns:
        CMRWarning: as for `attach`.

    Raises:
        StoreError: there is none, it is damaged, of a newer format, or the key is wrong.
        ModelMismatchError: another model or tokenizer saved it, or a session was read with other
            adapters (LoRA) than are in effect.
        UnknownSessionError: it has no such session.
        ConfigError: as for `attach`; also where its budgets take more than `max_bytes`.
        AttachError, UnsupportedModelError: as for `attach`; nothing is attached then.
    """
    # Everything that can be refused is, before the model is touched.
    limit = byte_limit(max_bytes)
    adapter = adapt(model)
    saved = open_saved(path, key, fingerprint.of_model(adapter), tokenizer)
    wanted = from_header(saved, overrides)
    require_free(model)
    require_room(adapter, wanted, limit, saved.path)
    memory = _memory(adapter, wanted, tokenizer, keep)
    try:
        memory._files.take(saved, sessions, key)
    except BaseException:
        memory.detach()
        raise
    return memory


def memory_of(model: Any) -> Memory:
    """The memory of a model class of this library, or of a decoder that has one attached."""
    for name in ("memory", ATTACHED):
        memory = getattr(model, name, None)
        if isinstance(memory, Memory):
            return memory
    raise AttachError(
        f"a model with a memory expected, got {type(model).__name__} without one: "
        "attach one with cmr.attach(model)"
    )


def _memory(
    adapter: ModelAdapter,
    settings: CMRConfig,
    tokenizer: Any,
    keep: Keep | None,
    elsewhere: Container[str] = (),
) -> Memory:
    missing = settings.unavailable()
    if missing:
        raise ConfigError("; ".join(missing))
    # Also where it is called in inference mode: what is stored may be changed outside of that.
    with lasting():
        memory = Memory(adapter, settings, tokenizer, keep)
    try:
        caution(memory._core)
        caution_idle(memory._core, elsewhere)
    except BaseException:
        # A warning, too, that the caller's filters make an error: none leaves a memory behind.

        memory.detach()
        raise
    return memory


# -- legal settings that recall little or nothing --------------------------------------------------


def caution(core: Core) -> None:
    """Warn of layers and of a weight that recall little or nothing; see docs/how-it-works.md."""
    # Not where memory is off on purpose, nor where states are blended: no layer is better than
    # another there.
    reweave = core.config.reweave
    if reweave.method in STATE_METHODS or not core.layout.read_layers:
        return
    _of_layers(core)
    weight = reweave.memory_weight
    if not isinstance(weight, str) and weight < LEAST_WEIGHT:
        warn(
            f"memory_weight={weight:g}: below {LEAST_WEIGHT:g} the window drowns what is recalled, "
            "and little or nothing was answered where it was measured; 'auto' (the default) reads "
            "as strongly as the search is sure, 0.88 always strongly, and 0 turns memory off"
        )


def caution_captured(core: Core, captured: tuple[int, ...] | None) -> None:
    """Warn where a model class captures layers with gaps, at which memory is not read."""
    reweave = core.config.reweave
    if reweave.method in STATE_METHODS or reweave.layers is not None or not core.layout.read_layers:
        return
    if not captured or len(captured) == captured[-1] - captured[0] + 1:
        return
    read = sorted(core.layout.read_layers)
    warn(
        f"target_layers={list(captured)}: their states are captured, and memory is read at layers "
        f"{read[0]} to {read[-1]}: reading at layers with gaps recalled nothing where it was "
        "measured. intervention_layers names other layers to read at"
    )


def _of_layers(core: Core) -> None:
    """Reading may begin up to half of the range later, and leaves none out behind that."""
    measured = core.calibration.target_layers if core.calibration else None
    usual, read = core.adapter.target_layers(measured), core.layout.read_layers
    # Measured: a range that begins late still recalls, one with gaps does not.
    unread = tuple(layer for layer in usual if layer not in read)
    if unread == usual[: len(unread)] and 2 * len(unread) <= len(usual):
        return
    name = "target_layers" if core.config.reweave.layers is None else "intervention_layers"
    warn(
        f"{name}={sorted(read)}: memory is read at layers {usual[0]} to {usual[-1]} together, as "
        f"each goes on from what those before it have read; without {list(unread)} most of what is "
        "recalled may be lost or all of it, as with every second layer where it was measured. "
        f"Leave {name} out, or name all of them"
    )
