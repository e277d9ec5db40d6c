"""Shape and dtype checks shared by the reference kernels; each shows both sides."""

from __future__ import annotations

import torch


def expect_shape(name: str, tensor: torch.Tensor, *dims: tuple[str, int | None]) -> None:
    """Raises unless `tensor` is a tensor of the given dimensions.

    Args:
        name: what the tensor is called in the message.
        tensor: the tensor.
        dims: (letter, size) per dimension; size None: any.

    Raises:
        TypeError: not a tensor.
        ValueError: other number of dimensions or another size.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: a tensor expected, got {type(tensor).__name__}")
    shape = tensor.shape
    wrong = len(shape) != len(dims)
    if not wrong:
        for have, (_, size) in zip(shape, dims):  # noqa: B905 - equally long, and on the hot path
            if size is not None and size != have:
                wrong = True
    if wrong:
        wanted = ", ".join(letter if size is None else f"{letter}={size}" for letter, size in dims)
        raise ValueError(f"{name}: shape [{wanted}] expected, got {list(shape)}")


def expect_bool(name: str, tensor: torch.Tensor) -> None:
    """Raises TypeError unless `tensor` holds bools."""
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name}: dtype torch.bool expected, got {tensor.dtype}")


def expect_float(name: str, tensor: torch.Tensor) -> None:
    """Raises TypeError unless `tensor` holds floating-point numbers."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: a floating-point dtype expected, got {tensor.dtype}")


def expect_same_dtype(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises TypeError unless `tensor` has `dtype`."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: dtype {dtype} expected, got {tensor.dtype}")


def expect_heads(query: torch.Tensor, key: torch.Tensor) -> None:
    """Raises ValueError unless the query's heads are a multiple of the key's."""
    heads, groups = query.shape[1], key.shape[1]
    if groups == 0 or heads % groups:
        raise ValueError(f"query: a multiple of the {groups} key heads expected, got {heads} heads")
