"""Single operations: their times beside plain PyTorch."""
