"""Makes Triton's interpreter stricter than it is, so that a kernel that passes is worth something.

As it comes, the interpreter computes on the bits of bfloat16 numbers as if they were integers, lets
accesses outside of the tensors pass, and runs programs one after another, so that two programs that
touch one address never show. Here

- casts from and to bfloat16 are exact (round to nearest even), products of bfloat16 tiles too, and
  other arithmetic on bfloat16 raises: kernels cast to float32 first;
- an access outside of the storage of every argument raises `IndexError`;
- two programs of one launch that touch one address, one of them writing, raise `RaceError`, and so
  does a program that writes an address twice, or reads what it wrote, without a barrier between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle


class RaceError(RuntimeError):
    """The result of a launch would depend on the order in which its programs run."""


def install() -> None:
    """Patch the interpreter; once a process."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "_cmr_faithful", False):
        return
    builder._cmr_faithful = True
    _mend_bfloat16(builder)
    _watch_memory(builder, interpreter.GridExecutor)


# -- bfloat16 -------------------------------------------------------------------------------------


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(x: np.ndarray) -> np.ndarray:
    """float32 as bfloat16 bits (uint16), to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def _is_bf16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _mend_bfloat16(builder: Any) -> None:
    cast, round_to, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        wanted = dst_type.scalar
        if _is_bf16(src) and wanted != tl.bfloat16:
            src = TensorHandle(widen(src.data), tl.float32)
            return src if wanted == tl.float32 else cast(self, src, dst_type)
        if wanted == tl.bfloat16 and not _is_bf16(src):
            return TensorHandle(narrow(src.data.astype(np.float32)), tl.bfloat16)
        return cast(self, src, dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if _is_bf16(src) or dst_type.scalar == tl.bfloat16:
            return cast_impl(self, src, dst_type)
        return round_to(self, src, dst_type, rounding_mode)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if _is_bf16(a) and _is_bf16(b):  # exact in float32, like a matrix unit's products
            a, b = (TensorHandle(widen(x.data), tl.float32) for x in (a, b))
        return dot(self, a, b, d, *rest)

    builder.cast_impl = cast_impl
    for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(builder, f"create_{name}", lambda self, src, dst: cast_impl(self, src, dst))
    builder.create_fp_to_fp, builder.create_dot = create_fp_to_fp, create_dot
    for name in ("binary_op", "unary_op", "ternary_op"):
        _refuse_bfloat16(builder, name)


def _refuse_bfloat16(builder: Any, name: str) -> None:
    plain = getattr(builder, name)

    def checked(self: Any, *operands: Any) -> Any:
        if operands[-1] is not np.where and any(_is_bf16(x) for x in operands):
            raise TypeError("arithmetic on bfloat16: cast to float32 after the load")
        return plain(self, *operands)

    setattr(builder, name, checked)


# -- memory ---------------------------------------------------------------------------------------


class _Watch:
    """The addresses that the programs of one launch touch."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.program = 0
        self.loads: list[np.ndarray] = []
        self.stores: list[np.ndarray] = []
        self.written = np.empty(0, np.uint64)

    def start(self, arguments: list[Any]) -> None:
        self.__init__()  # type: ignore[misc]
        for argument in arguments:
            tensor = getattr(argument, "base", argument)
            if hasattr(tensor, "untyped_storage"):
                storage = tensor.untyped_storage()
                self.ranges.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))

    def next_program(self) -> None:
        self.program += 1
        self.barrier()

    def barrier(self) -> None:
        self.written = np.empty(0, np.uint64)

    def touch(self, pointers: Any, mask: Any, what: str) -> None:
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        active = np.broadcast_to(mask.data, shape).astype(bool)
        addresses = np.broadcast_to(pointers.data, shape)[active].astype(np.uint64)
        if not addresses.size:
            return
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        inside = np.zeros(addresses.shape, bool)
        for low, high in self.ranges:
            inside |= (addresses >= low) & (addresses + np.uint64(size) <= high)
        if not inside.all():
            raise IndexError(
                f"{what} outside of every argument: {int((~inside).sum())} of {inside.size} lanes"
            )
        distinct = np.unique(addresses)
        if what != "atomic" and self.written.size and np.isin(distinct, self.written).any():
            raise RaceError(f"{what} of an address that this program wrote, without a barrier")
        if what == "store":
            if distinct.size != addresses.size:
                raise RaceError("two lanes of one program store to one address")
            self.written = np.concatenate([self.written, distinct])
        if what == "atomic":
            return
        noted = np.empty(distinct.size, dtype=[("at", np.uint64), ("by", np.int64)])
        noted["at"], noted["by"] = distinct, self.program
        (self.stores if what == "store" else self.loads).append(noted)

    def finish(self) -> None:
        if not self.stores:
            return
        stores = np.unique(np.concatenate(self.stores))
        again = stores["at"][1:] == stores["at"][:-1]
        if again.any():
            raise RaceError("two programs of one launch store to one address")
        if not self.loads:
            return
        loads = np.unique(np.concatenate(self.loads))
        where = np.searchsorted(stores["at"], loads["at"])
        where = np.minimum(where, len(stores) - 1)
        clash = (stores["at"][where] == loads["at"]) & (stores["by"][where] != loads["by"])
        if clash.any():
            raise RaceError("a program reads an address that another one of its launch stores to")


def _watch_memory(builder: Any, executor: Any) -> None:
    watch = _Watch()
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, barrier, index = builder.create_atomic_rmw, builder.create_barrier, builder.set_grid_idx
    begin, end = executor._init_args_hst, executor._restore_args_dev

    def init(self: Any, args: Any, kwargs: Any) -> Any:
        positional, named = begin(self, args, kwargs)
        watch.start([*positional, *named.values()])
        return positional, named

    def restore(self: Any, *rest: Any) -> Any:
        watch.finish()
        return end(self, *rest)

    def next_program(self: Any, *where: int) -> None:
        watch.next_program()
        index(self, *where)

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        watch.touch(pointers, mask, "load")
        return load(self, pointers, mask, *rest)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.touch(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest)

    def atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.touch(pointers, mask, "atomic")
        return rmw(self, op, pointers, value, mask, *rest)

    def create_barrier(self: Any) -> None:
        watch.barrier()
        barrier(self)

    executor._init_args_hst, executor._restore_args_dev = init, restore
    builder.set_grid_idx, builder.create_barrier = next_program, create_barrier
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw = atomic_rmw
