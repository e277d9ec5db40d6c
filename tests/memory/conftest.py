"""Fresh buffers are poisoned for the store as they are for the kernels."""

from tests.kernels.conftest import poisoned_buffers

__all__ = ["poisoned_buffers"]
