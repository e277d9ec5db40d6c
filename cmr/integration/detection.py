"""The adapter of a model: by its family's row, or by a guessed one that has proved itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from cmr.errors import UnsupportedModelError
from cmr.integration.decoder.adapter import ModelAdapter, with_states
from cmr.integration.decoder.families import FAMILIES, Family, covered, require_decoder
from cmr.integration.decoder.guesses import Watched, rows, run, skeleton, watch
from cmr.integration.decoder.partial_pass import at_rest
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.held import LayerRows
from cmr.integration.reweave.plugs import plugged
from cmr.integration.reweave.scratch import StepScratch
from cmr.kernels.attention import rotate, unrotate

logger = logging.getLogger("cmr")

TOKENS = 32
"""Length of the random text, half of which is read from memory."""
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest error by dtype: of keys and values against their largest number, of what a layer attends
to against its root mean square."""


def adapt(model: Any) -> ModelAdapter:
    """The adapter of a model, whose family has a row or can be detected.

    A model without a row gets one that is guessed from its modules and proves itself on a short
    random text before it is used: (1) keys and values that it computes from the states that enter
    each layer equal what the model's own cache holds, and (2) what each layer attends to, with half
    of the text read from memory, equals what it attends to with all of it in the window. The model
    is left as it was. Raises `UnsupportedModelError` for what is not a decoder, is configured in a
    way that is not covered, or has no row and failed a check. It names the check, the layer and the
    error.
    """
    config = require_decoder(model)
    if config.model_type in FAMILIES:
        return ModelAdapter(model)
    try:
        with at_rest(model):
            adapter = _detect(model, config)
    except Exception as reason:
        # Of other people's code, in which anything may break.
        said = reason if isinstance(reason, UnsupportedModelError) else repr(reason)
        raise UnsupportedModelError(
            f"model family {config.model_type!r} is not covered and could not be detected: {said}. "
            f"Covered: {covered()}. A family is a row in "
            "cmr/integration/decoder/families.py and a test"
        ) from reason
    logger.info(
        "family %r has no row of its own; it was detected and checked on a short text",
        config.model_type,
    )
    return adapter


def _detect(model: Any, config: Any) -> ModelAdapter:
    frame = ModelAdapter(model, skeleton(model, config))
    ids = _text(model, config)
    seen = watch(frame, ids, DynamicCache())
    # The first guess is the likeliest: if none proves itself, what was wrong with it is told.
    reasons = []
    for row in rows(frame, seen.norm):
        try:
            row = _check_keys(ModelAdapter(model, row), seen)
            return _check_reading(model, row, ids, seen)
        except UnsupportedModelError as reason:
            reasons.append(reason)
        except (AttributeError, RuntimeError, TypeError, ValueError) as reason:
            reasons.append(UnsupportedModelError(f"{row.projection} projections: {reason}"))
    raise reasons[0]


# -- check 1: keys and values --------------------------------------------------------------------


def _check_keys(adapter: ModelAdapter, seen: Watched) -> Family:
    """The row, with the layers that rotate; raises where a layer's keys or values differ."""
    tolerance = TOLERANCE[adapter.dtype]
    turning = []
    for layer, states in enumerate(seen.entering):
        keys, values = adapter.keys_values(layer, states)
        held = seen.cache.layers[layer]
        error = _apart(adapter.distinct(held.values), values)
        if not error <= tolerance:
            raise _failed("values", layer, error, tolerance)
        kept = adapter.distinct(held.keys)
        # Some models leave layers without rotation (SmolLM3): the way that fits is the layer's.
        plain = _apart(kept, keys)
        turned = plain
        if adapter.has_rotary:
            places = torch.arange(states.shape[1], device=states.device)[None]
            # As the model rotates: with cosines rounded to its own dtype.
            turn = (x.to(kept.dtype).float() for x in adapter.rotary(layer, places))
            turned = _apart(unrotate(kept, *turn), keys)
        if not min(plain, turned) <= tolerance:
            raise _failed("keys", layer, min(plain, turned), tolerance)
        if adapter.has_rotary and turned <= tolerance:
            turning.append(layer)
    # None says that all do, also where a model has no rotation at all: then nobody asks.
    every = len(turning) == adapter.depth or not adapter.has_rotary
    return replace(adapter.family, rotates=None if every else tuple(turning))


def _apart(have: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, as a share of the largest number wanted; infinite for other shapes."""
    if have.shape != want.shape:
        return float("inf")
    have, want = have.float(), want.float()
    return float((have - want).abs().max() / want.abs().max().clamp(min=1e-12))


def _failed(what: str, layer: int, error: float, tolerance: float) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"its {what} at layer {layer} are not those that the model keeps in its cache "
        f"(they differ by {error:.2g} of the largest, at most {tolerance:.2g} expected)"
    )


# -- check 2: reading ----------------------------------------------------------------------------


class _Lender:
    """Gives every layer the first tokens of a text to read, as memory at their true positions."""

    def __init__(self, memory: list[LayerMemory] | None) -> None:
        self.scratch = StepScratch()
        self.step = memory

    def memory_for(self, layer: int) -> LayerMemory | None:
        return None if self.step is None else self.step[layer]


def _check_reading(model: Any, row: Family, ids: torch.Tensor, seen: Watched) -> ModelAdapter:
    """The adapter; raises where a layer attends to something else with the plug in place."""
    # Nothing to read comes first: a plug that changes a plain forward is no plug.
    reason = None
    half = ids.shape[1] // 2
    for plug in ("interface", "sdpa"):
        try:
            adapter = ModelAdapter(model, replace(row, plug=plug))
            with plugged(adapter, _Lender(None)):
                found = run(adapter, ids, 0, DynamicCache(), _as_seen(seen, 0))
            _compare(adapter, found, seen, 0, "with nothing to read")
            read: dict[int, torch.Tensor] = {}
            memory = [_memory(adapter, n, x, half, read) for n, x in enumerate(seen.entering)]
            with plugged(adapter, _Lender(memory)):
                found = run(adapter, ids, half, DynamicCache(), _as_seen(seen, half))
            for layer in range(adapter.depth):
                if layer not in read:
                    raise UnsupportedModelError(
                        f"its attention at layer {layer} does not ask transformers' "
                        "AttentionInterface, nor PyTorch's scaled_dot_product_attention"
                    )
            _compare(adapter, found, seen, half, "with half of a text read from memory")
            return adapter
        except UnsupportedModelError as error:
            reason = reason or error
    assert reason is not None
    raise reason


def _as_seen(seen: Watched, start: int) -> Callable[..., Any]:
    """Gives each block what it saw before, so that no layer's error adds to the next one's."""

    def enters(layer: int, args: Any, kwargs: Any) -> Any:
        return with_states(args, kwargs, seen.entering[layer][:, start:])

    return enters


def _compare(
    adapter: ModelAdapter, attended: list[torch.Tensor], seen: Watched, start: int, when: str
) -> None:
    """Raises where a layer attended to something else than in the full run."""
    tolerance = TOLERANCE[adapter.dtype]
    for layer, have in enumerate(attended):
        want = seen.attended[layer][:, start:].float()
        error = float((have.float() - want).square().mean().sqrt())
        error /= max(1e-12, float(want.square().mean().sqrt()))
        if not error <= tolerance:
            raise UnsupportedModelError(
                f"{when}, layer {layer} attends to something else than with all of it in the "
                f"window (the difference is {error:.2g} of what it attends to, at most "
                f"{tolerance:.2g} expected)"
            )


def _memory(
    adapter: ModelAdapter,
    layer: int,
    states: torch.Tensor,
    tokens: int,
    gates: dict[int, torch.Tensor],
) -> LayerMemory:
    """The first tokens as one layer reads them; `gates` notes that it has."""
    keys, values = adapter.keys_values(layer, states[:, :tokens])
    if adapter.rotates(layer):
        places = torch.arange(tokens, device=states.device)[None]
        keys = rotate(keys, *adapter.rotary(layer, places))
    bias = states.new_zeros(1).float()
    return LayerMemory(LayerRows(keys, values, None), bias, None, None, gates)


# -- the model -----------------------------------------------------------------------------------


def _text(model: Any, config: Any) -> torch.Tensor:
    """Random token ids `[1, tokens]`, no more than a sliding window shows at once."""
    # Layers that see less than others would not read all of the half that is memory.
    span = getattr(config, "sliding_window", None)
    tokens = min(TOKENS, span) if isinstance(span, int) and span > 1 else TOKENS
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, tokens), generator=generator)
    return ids.to(model.get_input_embeddings().weight.device)
