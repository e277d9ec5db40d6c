"""What a layer computes while it reads memory.

A layer first attends to its local window, which gives a partial result and its log-sum-exp. The
memory's keys then join the same softmax: both together are one attention, and the share that went
to memory comes out beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from cmr.integration.reweave.aside import Aside
from cmr.integration.reweave.attention_weights import attention_weights
from cmr.integration.reweave.held import LayerBlocks, LayerRows
from cmr.integration.reweave.scratch import StepScratch, StepTensors
from cmr.kernels import implementation
from cmr.kernels.attention import attention_with_lse, rotate
from cmr.kernels.attention_partials import attention_partials
from cmr.kernels.reweave import reweave_attention
from cmr.kernels.reweave_paged import reweave_paged

PREFIX = "cmr_"
MARK = "_cmr_reader"
"""Attribute that marks an attention module as read by a memory, present only while attached."""
WATCH = "_cmr_watch"
"""Attribute of an attention module whose weights are captured, see `cmr.HookManager`."""

KEYS_PER_PART = 128
"""Local keys that a program reads at least while decoding on a GPU."""
MOST_PARTS = 16
FEW_PROGRAMS = 128
"""Rows and heads below which the keys are divided among programs, to keep a GPU busy."""


@dataclass(frozen=True)
class LayerMemory:
    """What one layer reads in one forward.

    Attributes:
        held: the chosen blocks, in place or copied.
        bias: `[batch]` float32, added to the memory's logits.
        query_mask: `[batch, tokens]` bool, False for tokens that must not read; None for all.
        turn: cosine and sine `[batch, tokens, rotary_dim]` float32 that rotate the query to where
            memory is read; None leaves it.
        gates: takes the share of attention that went to memory, `[batch, heads, tokens]`, by layer.
        weights: whether the local attention weights are wanted, too.
        aside: what the layer looks at less among its local keys; None: nothing.
        took: takes the seconds of 'reweave'; None where nobody watches.
    """

    held: LayerBlocks | LayerRows
    bias: torch.Tensor
    query_mask: torch.Tensor | None
    turn: tuple[torch.Tensor, torch.Tensor] | None
    gates: dict[int, torch.Tensor]
    weights: bool = False
    aside: Aside | None = None
    took: Callable[[str, float], None] | None = None


class LayerReader(Protocol):
    """What the plugs need of a memory: the forward's hooks, or the proof of an unknown family."""

    step: Any
    """The forward under way; None: it is the model's own, and no layer has to ask."""

    @property
    def scratch(self) -> StepScratch:
        """Tensors that a decoding step writes into."""

    def memory_for(self, layer: int) -> LayerMemory | None:
        """What block `layer` reads in this forward; None reads nothing."""


def memory_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers calls it, with the memory of `module`'s reader woven in.

    Without a reader, or where it has nothing to read, the model's own function is called with the
    arguments as they came: the result is bit-identical to the model without a memory.

    Args:
        module: the attention module.
        query: `[batch, heads, tokens, head_dim]`, rotated.
        key: `[batch, kv_heads, seen, head_dim]`, rotated, the local window.
        value: the same shape.
        attention_mask: None, bool or additive `[batch, 1, tokens, seen]`.
        scaling: of the logits; `head_dim ** -0.5` when None.
        dropout: of the attention weights; memory is not read while it is above 0.
        **kwargs: what else the model passes on.

    Returns:
        `[batch, tokens, heads, head_dim]`, and the local attention weights `[batch, heads, tokens,
        seen]` where they are wanted; what a row of them lacks of a sum of 1 went to memory.
    """
    watch = getattr(module, WATCH, None)
    if watch is not None:
        watch(query, key, attention_mask, scaling, kwargs.get("softcap"))
    reader: LayerReader | None = getattr(module, MARK, None)
    memory = None
    # Dropout would have to fall on window and memory alike; the kernels give no such weights. Where
    # no forward reads, as in the passes that the memory runs for itself, the reader is not asked.
    if reader is not None and reader.step is not None and dropout == 0.0:
        memory = reader.memory_for(module.layer_idx)  # type: ignore[arg-type]
    if reader is None or memory is None:
        return _own(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    # Of transformers' own functions only the eager one looks at a soft cap.
    eager = _own_name(module) == "eager"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    softcap = kwargs.get("softcap") if eager else None
    out, gate = read_memory(
        module, reader, memory, query, key, value, attention_mask, scale=scale, softcap=softcap
    )
    if not memory.weights or not eager:
        return out.transpose(1, 2), None
    if memory.aside is not None:
        attention_mask = memory.aside.over(attention_mask, query, key)
    local = attention_weights(query, key, attention_mask, scaling, kwargs.get("softcap"))
    return out.transpose(1, 2), (local * (1.0 - gate[..., None])).to(query.dtype)


def read_memory(
    module: nn.Module,
    reader: LayerReader,
    memory: LayerMemory,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scale: float,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`weave` as an attention module wants it, with the tensors that a decoding step writes into.

    Args as for `memory_attention`; a key may come with as many heads as the query has. Gives
    `[batch, heads, tokens, head_dim]`, and the share of attention that went to memory, `[batch,
    heads, tokens]`.
    """
    tokens = query.shape[2]
    causal = attention_mask is None and tokens > 1
    if causal and key.shape[2] > tokens:  # an empty static cache: behind the tokens lies nothing
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    layer: int = module.layer_idx  # type: ignore[assignment]
    if memory.aside is not None:
        attention_mask = memory.aside.over(attention_mask, query, key)
        causal = causal and attention_mask is None
    in_place = isinstance(memory.held, LayerBlocks)
    kept = in_place and not torch.compiler.is_compiling()  # a compiler lays out its own
    # What autograd has noted must not be written over by the next step.
    decoding = kept and tokens == 1 and not torch.is_grad_enabled()
    into = reader.scratch.take(layer, query, parts(query, key)) if decoding else None
    began = 0.0 if memory.took is None else time.perf_counter()
    out, gate = weave(
        query,
        key,
        value,
        attention_mask,
        memory,
        is_causal=causal,
        scale=scale,
        softcap=softcap,
        into=into,
    )
    if memory.took is not None:
        memory.took("reweave", time.perf_counter() - began)
    memory.gates[layer] = gate
    return out, gate


def weave(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    memory: LayerMemory,
    *,
    is_causal: bool,
    scale: float,
    softcap: float | None,
    into: StepTensors | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the local window and the chosen blocks.

    Two launches where blocks are read in place. With `into` nothing is allocated then, and nothing
    waits for the device.
    """
    if into is not None and into.local.ndim == 5:
        # While decoding, one row and head alone would leave most of a GPU idle.
        local, lse = attention_partials(
            query, key, value, mask, scale=scale, softcap=softcap, out=into.local, lse=into.lse
        )
    else:
        local, lse = attention_with_lse(
            query,
            key,
            value,
            mask=mask,
            is_causal=is_causal,
            scale=scale,
            softcap=softcap,
            out=None if into is None else into.local,
            lse=None if into is None else into.lse,
        )
    # The kernel turns the query itself where it reads blocks in place: nothing is allocated.
    held = memory.held
    if isinstance(held, LayerRows):
        return reweave_attention(
            query if memory.turn is None else rotate(query, *memory.turn),
            held.keys,
            held.values,
            held.mask,
            local,
            lse,
            bias=memory.bias,
            scale=scale,
            softcap=softcap,
            query_mask=memory.query_mask,
        )
    return reweave_paged(
        query,
        held.keys,
        held.values,
        held.table,
        held.stamps,
        held.created,
        held.positions,
        memory.bias,
        local,
        lse,
        turn=memory.turn,
        query_mask=memory.query_mask,
        scale=scale,
        softcap=softcap,
        out=None if into is None else into.out,
        gate=None if into is None else into.gate,
    )


def parts(query: torch.Tensor, key: torch.Tensor) -> int:
    """Parts of the local keys that a decoding step's programs share; 1 where there are none."""
    if implementation(query.device).name != "triton":
        return 1
    programs = key.shape[0] * key.shape[1]
    wanted = min(MOST_PARTS, -(-FEW_PROGRAMS // programs), -(-key.shape[2] // KEYS_PER_PART))
    return max(1, wanted)


def _own(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function that the model would call without a memory."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = _own_name(module)
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def _own_name(module: nn.Module) -> str:
    config: Any = module.config
    return config._attn_implementation.removeprefix(PREFIX)
