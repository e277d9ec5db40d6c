"""The Triton kernels compiled ahead of time, for GPUs that are not here, and what came out."""
