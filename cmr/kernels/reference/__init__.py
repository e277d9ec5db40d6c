"""Plain PyTorch of which the specifications and the layers above the kernels are made."""
