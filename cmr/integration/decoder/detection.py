"""The adapter of a model: by its family's row, or by a guessed one that has proved itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from cmr.errors import UnsupportedModelError
from cmr.integration.decoder.adapter import ModelAdapter, with_states
from cmr.integration.decoder.coverage import covered, require_decoder
from cmr.integration.decoder.families import FAMILIES, Family
from cmr.integration.decoder.guesses import Skeleton, Watched, rows, skeleton, watch
from cmr.integration.reweave.attention import LayerMemory
from cmr.integration.reweave.held import LayerRows
from cmr.integration.reweave.plugs import plugged
from cmr.integration.reweave.scratch import StepScratch
from cmr.kernels.reference.rotary import rotate, unrotate

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
    is left as it was.

    Args:
        model: a transformers decoder with a language-model head.

    Raises:
        UnsupportedModelError: for what is not a decoder, is configured in a way that is not
            covered, or has no row and failed a check. It names the check, the layer and the error.
    """
    config = require_decoder(model)
    if config.model_type in FAMILIES:
        return ModelAdapter(model)
    try:
        with _at_rest(model):
            adapter = _detect(model, config)
    except Exception as reason:  # of other people's code, in which anything may break
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
    frame = skeleton(model, config)
    ids = _text(model, config)
    seen = watch(frame, ids, DynamicCache())
    reasons = []
    for row in rows(frame, seen.norm):
        try:
            row = _check_keys(ModelAdapter(model, row), seen)
            return _check_reading(model, frame, row, ids, seen)
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
        plain = _apart(kept, keys)
        turned = plain
        if adapter.has_rotary:
            places = torch.arange(states.shape[1], device=states.device)[None]
            turn = (x.to(kept.dtype).float() for x in adapter.rotary(layer, places))
            turned = _apart(unrotate(kept, *turn), keys)
        if not min(plain, turned) <= tolerance:
            raise _failed("keys", layer, min(plain, turned), tolerance)
        if adapter.has_rotary and turned <= tolerance:
            turning.append(layer)
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
        self._memory = memory

    def memory_for(self, layer: int) -> LayerMemory | None:
        return None if self._memory is None else self._memory[layer]


def _check_reading(
    model: Any, frame: Skeleton, row: Family, ids: torch.Tensor, seen: Watched
) -> ModelAdapter:
    """The adapter; raises where a layer attends to something else with the plug in place."""
    reason = None
    half = ids.shape[1] // 2
    for plug in ("interface", "sdpa"):
        try:
            adapter = ModelAdapter(model, replace(row, plug=plug))
            nothing = _Lender(None)
            found = _attended(adapter, frame, ids, 0, nothing, seen)
            _compare(adapter, found, seen, 0, "with nothing to read")
            read: dict[int, torch.Tensor] = {}
            memory = [_memory(adapter, n, x, half, read) for n, x in enumerate(seen.entering)]
            lender = _Lender(memory)
            found = _attended(adapter, frame, ids, half, lender, seen)
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


def _attended(
    adapter: ModelAdapter,
    frame: Skeleton,
    ids: torch.Tensor,
    start: int,
    lender: _Lender,
    seen: Watched,
) -> list[torch.Tensor]:
    """What each layer attends to from token `start` on, given the states that it saw before."""
    attended: list[torch.Tensor] = []

    def attends(_: Any, args: Any, output: Any) -> None:
        attended.append(output[0] if isinstance(output, tuple) else output)

    def enters(layer: int) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            # What enters is given, so that no layer's error adds to the next one's.
            return with_states(args, kwargs, seen.entering[layer][:, start:])

        return hook

    places = torch.arange(start, ids.shape[1], device=ids.device)[None]
    with ExitStack() as hooks:
        hooks.enter_context(plugged(adapter, lender))
        for layer, block in enumerate(frame.blocks):
            handle = block.register_forward_pre_hook(enters(layer), with_kwargs=True)
            hooks.callback(handle.remove)
            hooks.callback(adapter.attention(layer).register_forward_hook(attends).remove)
        adapter.decoder(
            input_ids=ids[:, start:],
            position_ids=places,
            past_key_values=DynamicCache(),
            use_cache=True,
        )
    return attended


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
    span = getattr(config, "sliding_window", None)
    tokens = min(TOKENS, span) if isinstance(span, int) and span > 1 else TOKENS
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, tokens), generator=generator)
    return ids.to(model.get_input_embeddings().weight.device)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients; afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
