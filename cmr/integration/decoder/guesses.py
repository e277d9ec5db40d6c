"""Rows for families that have none, guessed from a decoder's modules and one watched forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cmr.errors import UnsupportedModelError
from cmr.integration.decoder.adapter import ModelAdapter, entering_states
from cmr.integration.decoder.families import Family
from cmr.integration.decoder.wrapped import hooked

SPLIT = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("wq", "wk", "wv"))
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")


def skeleton(model: Any, config: Any) -> Family:
    """The row of a model as far as names of modules tell; raises where that is too little."""
    decoder = model.get_decoder()
    depth = getattr(config, "num_hidden_layers", None)
    lists = [
        name
        for name, child in decoder.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if not lists:
        raise UnsupportedModelError(f"no list of its {depth} blocks was found")
    block = getattr(decoder, lists[0])[0]
    found = [name for name, child in block.named_children() if _projects(child)]
    if not found:
        names = ", ".join(name for name, _ in block.named_children())
        raise UnsupportedModelError(
            f"no module of a block ({names}) projects queries, keys and values in a known way"
        )
    # What is read stands at positions of its own: a model that counts by itself cannot be told.
    takes = inspect.signature(decoder.forward).parameters
    if "position_ids" not in takes:
        raise UnsupportedModelError("it cannot be told the positions of its tokens")
    furthest = next((name for name in POSITIONS if getattr(config, name, None)), None)
    if furthest is None:
        raise UnsupportedModelError("its configuration does not say how long a text may be")
    attention = getattr(block, found[0])
    rotary = next((name for name, child in decoder.named_children() if _turns(name, child)), None)
    by_type = rotary is not None and "layer_type" in inspect.signature(
        getattr(decoder, rotary).forward
    ).parameters  # fmt: skip
    return Family(
        layers=lists[0],
        attention=found[0],
        norms=(),
        query_norm=_norm(attention, "q"),
        key_norm=_norm(attention, "k"),
        rotary=rotary,
        rotary_by_layer_type=by_type and bool(getattr(config, "layer_types", None)),
        kv_heads=next((n for n in KV_HEADS if getattr(config, n, None)), KV_HEADS[0]),
        max_positions=furthest,
    )


@dataclass(frozen=True)
class Watched:
    """What one forward showed.

    Attributes:
        entering: of each block, the states `[1, tokens, hidden]` that entered it.
        attended: of each block, what its attention gave, the same shape.
        norm: attribute of the blocks: the norm in front of the attention; None where it reads the
            states as they enter.
        cache: the keys and values that the model kept.
    """

    entering: list[torch.Tensor]
    attended: list[torch.Tensor]
    norm: str | None
    cache: Any


def watch(adapter: ModelAdapter, ids: torch.Tensor, cache: Any) -> Watched:
    """Run the decoder over a text `[1, tokens]` and note what its blocks do; the cache is empty."""
    states: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    made: dict[str, torch.Tensor] = {}

    def enters(layer: int, args: Any, kwargs: Any) -> None:
        states.append(entering_states(args, kwargs))

    def reads(_: Any, args: Any, kwargs: Any) -> None:
        read.append(entering_states(args, kwargs))

    def normed(name: str) -> Any:
        def hook(_: Any, args: Any, output: Any) -> None:
            if args and args[0] is states[0]:
                made[name] = output

        return hook

    with ExitStack() as hooks:
        for name, child in adapter.layers[0].named_children():
            if name == adapter.family.attention:
                hooked(hooks, child, reads, with_kwargs=True)
            else:
                hooked(hooks, child, normed(name), behind=True)
        attended = run(adapter, ids, 0, cache, enters)
    if not read or not len(states) == len(attended) == adapter.depth:
        raise UnsupportedModelError("its blocks do not call their attention once a forward each")
    if read[0] is states[0]:
        return Watched(states, attended, None, cache)
    norm = next((name for name, output in made.items() if output is read[0]), None)
    if norm is None:
        raise UnsupportedModelError(
            "its attention reads neither what enters a block nor what a norm makes of that"
        )
    return Watched(states, attended, norm, cache)


def run(
    adapter: ModelAdapter, ids: torch.Tensor, start: int, cache: Any, enters: Callable[..., Any]
) -> list[torch.Tensor]:
    """What each block's attention gives for a text `[1, tokens]` from token `start` on.

    `enters(layer, args, kwargs)` is asked in front of each block and may put others in their place.
    """
    attended: list[torch.Tensor] = []

    def attends(_: Any, args: Any, output: Any) -> None:
        attended.append(output[0] if isinstance(output, tuple) else output)

    def entered(layer: int) -> Any:
        return lambda _, args, kwargs: enters(layer, args, kwargs)

    with ExitStack() as hooks:
        for layer, block in enumerate(adapter.layers):
            hooked(hooks, block, entered(layer), with_kwargs=True)
            hooked(hooks, adapter.attention(layer), attends, behind=True)
        adapter.decoder(
            input_ids=ids[:, start:],
            position_ids=torch.arange(start, ids.shape[1], device=ids.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
    return attended


def rows(frame: ModelAdapter, norm: str | None) -> Iterator[Family]:
    """Rows that fit the skeleton, the likeliest first."""
    attention = frame.attention(0)
    base = replace(frame.family, norms=() if norm is None else (norm,))
    # No name tells whether a norm is of each head or of all: both are tried.
    normed = base.query_norm is not None or base.key_norm is not None
    for by_head in (True, False) if normed else (True,):
        shaped = replace(base, norm_by_head=by_head)
        names = next((n for n in SPLIT if all(_is_linear(attention, x) for x in n)), None)
        if names is not None:
            yield replace(shaped, projection="split", names=names)
        fused = next((n for n in FUSED if _is_linear(attention, n)), None)
        if fused is not None:
            for layout in ("side_by_side", "by_group"):
                yield replace(shaped, projection=layout, names=(fused,))


def _projects(module: nn.Module) -> bool:
    fused = any(_is_linear(module, name) for name in FUSED)
    return fused or any(all(_is_linear(module, x) for x in names) for names in SPLIT)


def _is_linear(module: nn.Module, name: str) -> bool:
    part = getattr(module, name, None)
    return isinstance(part, nn.Module) and hasattr(part, "weight")


def _turns(name: str, module: nn.Module) -> bool:
    return any(word in f"{name} {type(module).__name__}".lower() for word in ("rotary", "rope"))


def _norm(attention: nn.Module, letter: str) -> str | None:
    """Attribute of an attention that norms its queries (`q`) or keys (`k`)."""
    names = [n for n, child in attention.named_children() if child is not None and "norm" in n]
    return next((name for name in names if name.lower().startswith(letter)), None)
