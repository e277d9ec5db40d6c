"""Plain-PyTorch kernels: the specification of each operation, and what runs on a CPU."""
