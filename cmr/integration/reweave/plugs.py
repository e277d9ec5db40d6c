"""Where a reader is put between a model's layers and their attention, and taken away again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cmr._warning import warn
from cmr.errors import AttachError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.wrapped import Wrapped
from cmr.integration.reweave import face
from cmr.integration.reweave.attention import MARK, LayerMemory, LayerReader, read_memory


class Plugs:
    """Lets the layers of one model read what a reader gives them.

    Of families that ask transformers' `AttentionInterface` the attention modules, and nobody else,
    find the plug's name in their configuration (reweave/face.py). Of those that call PyTorch's
    `scaled_dot_product_attention` themselves, the attention modules' `forward` is wrapped, instance
    by instance, and that one call inside it is answered while there is memory to read. Both ways a
    layer without memory runs its own code.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        self._adapter = adapter
        self._embeddings: Any = adapter.model.get_input_embeddings()
        self._right: object = None
        self._implementation: str | None = None
        self._wrapped: list[Wrapped] = []
        self._warned = False

    def attach(self, reader: LayerReader) -> None:
        """Put the plugs in place."""
        decoder: Any = self._adapter.decoder
        if self._adapter.family.plug == "interface":
            self._implementation = decoder.config._attn_implementation
        for attention in self._adapter.attentions():
            setattr(attention, MARK, reader)
            if self._adapter.family.plug == "interface":
                face.put(attention)
            elif self._adapter.family.plug == "sdpa":
                around = functools.partial(_read, attention, self._warn)
                self._wrapped.append(Wrapped(attention, "forward", around))

    def require_as_attached(self) -> None:
        """Raises `AttachError` where the model's dtype, device or attention was changed."""
        weight = self._embeddings.weight
        config: Any = self._adapter.decoder.config
        now = weight.dtype, weight.device, config._attn_implementation
        if now != self._right:  # looked at once; then only whether it is still the same
            self._adapter.require_unmoved()
            self._require_same_attention()
            self._right = now

    def _require_same_attention(self) -> None:
        if self._implementation is None:  # what is wrapped stays wrapped, whatever is set
            return
        decoder: Any = self._adapter.decoder
        name = decoder.config._attn_implementation
        if name != self._implementation:
            raise AttachError(
                f"the attention implementation was set to {name!r} while a memory is attached: "
                "detach() the memory, set the implementation, and attach again (or set "
                f"{self._implementation!r} back)"
            )

    def _warn(self) -> None:
        """Says once that layers of this family give no attention weights while they read."""
        if not self._warned:
            self._warned = True
            warn(
                f"output_attentions: layers of {self._adapter.config.model_type!r} that read "
                "memory give None; call memory.pause(), or recall nothing "
                "(memory.retrieval(blocks=0)), to have the weights of all"
            )

    def detach(self, reader: LayerReader) -> None:
        """Take them away; the model is as it was, but for what others have set since."""
        for attention in self._adapter.attentions():
            if getattr(attention, MARK, None) is reader:
                delattr(attention, MARK)
            if self._adapter.family.plug == "interface":
                face.take_away(attention)
        for wrapped in self._wrapped:
            wrapped.take_away()
        self._wrapped.clear()
        self._implementation = None


@contextmanager
def plugged(adapter: ModelAdapter, reader: LayerReader) -> Iterator[None]:
    """Layers read what `reader` gives them in forwards inside."""
    plugs = Plugs(adapter)
    plugs.attach(reader)
    try:
        yield
    finally:
        plugs.detach(reader)


def _read(
    attention: nn.Module,
    warn: Callable[[], None],
    own: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The module's own `forward` with memory woven in where its reader has some.

    `warn` says that attention weights were asked for: there are none where memory is read.
    """
    reader: LayerReader | None = getattr(attention, MARK, None)
    memory = None
    if reader is not None and reader.step is not None:
        memory = reader.memory_for(attention.layer_idx)  # type: ignore[arg-type]
    if reader is None or memory is None:
        return own(*args, **kwargs)
    if kwargs.get("output_attentions"):
        warn()
        kwargs["output_attentions"] = False
    # Between its own lines nothing can be put: the one call that attends is answered instead.
    with _Woven(attention, reader, memory):
        return own(*args, **kwargs)


class _Woven(TorchFunctionMode):
    """Answers calls of `scaled_dot_product_attention` inside with memory woven in."""

    def __init__(self, module: nn.Module, reader: LayerReader, memory: LayerMemory) -> None:
        super().__init__()
        self._module, self._reader, self._memory = module, reader, memory

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            return self._weave(*args, **kwargs)
        return func(*args, **kwargs)

    def _weave(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if dropout_p > 0.0:  # memory is not read while training
            given = query, key, value, attn_mask, dropout_p, is_causal
            return nn.functional.scaled_dot_product_attention(
                *given, scale=scale, enable_gqa=enable_gqa
            )
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        read = self._module, self._reader, self._memory
        return read_memory(*read, query, key, value, attn_mask, scale=scale, softcap=None)[0]
