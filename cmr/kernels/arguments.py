"""What an operation expects of its tensors, said in one table and checked in one call."""

from __future__ import annotations

from typing import Any

import torch

FLOAT = "a floating-point dtype"
INTEGER = "an integer dtype"
CONTIGUOUS = "contiguous"


def expect(*wanted: tuple[Any, ...], **sizes: int) -> dict[str, int]:
    """Raises unless tensors have the shapes, dtypes and layouts that an operation needs.

    Args:
        wanted: for each tensor what a message calls it; the tensor, None where it was not given;
            its dimensions, a word each as in "B H S D"; its dtype (`FLOAT` and `INTEGER`: any of
            these, None: any at all, a name: that of a tensor before); and `CONTIGUOUS` where it has
            to be. The first tensor that has a dimension sets its size, the others must agree; one
            called 1 is 1.
        sizes: of dimensions that are known before.

    Returns:
        The size of every dimension.

    Raises:
        TypeError: not a tensor, or another dtype.
        ValueError: other dimensions, not contiguous, or H heads that are no multiple of G key
            heads, where there are both.
    """
    known = {"1": 1, **sizes}
    dtypes: dict[str, torch.dtype] = {}
    for name, tensor, dimensions, dtype, *layout in wanted:
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: a tensor expected, got {type(tensor).__name__}")
        # On the hot path of every layer and step: one loop, and no message is made unless it is
        # needed.
        words, shape = dimensions.split(), tensor.shape
        fits = len(words) == len(shape)
        for word, size in zip(words, shape):  # noqa: B905 - a loop over fewer is wrong already
            fits = fits and known.get(word, size) == size
        if not fits:
            shown = ", ".join(f"{word}={known[word]}" if word in known else word for word in words)
            raise ValueError(f"{name}: shape [{shown}] expected, got {list(shape)}")
        known.update(zip(words, shape))  # noqa: B905 - equally long
        dtypes[name], dtype = tensor.dtype, dtypes.get(dtype, dtype)
        if dtype is FLOAT:
            fits = tensor.is_floating_point()
        elif dtype is INTEGER:
            fits = not (tensor.is_floating_point() or tensor.dtype == torch.bool)
        else:
            fits = dtype is None or tensor.dtype == dtype
        if not fits:
            kind = dtype if isinstance(dtype, str) else f"dtype {dtype}"
            raise TypeError(f"{name}: {kind} expected, got {tensor.dtype}")
        if layout and not tensor.is_contiguous():
            raise ValueError(f"{name}: a contiguous tensor expected, got strides {tensor.stride()}")
    heads, groups = known.get("H"), known.get("G")
    if heads is not None and groups is not None and (groups == 0 or heads % groups):
        raise ValueError(f"query: a multiple of the {groups} key heads expected, got {heads} heads")
    return known
