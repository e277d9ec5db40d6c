"""The same steps as Triton kernels."""
