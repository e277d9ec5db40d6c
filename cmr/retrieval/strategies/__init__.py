"""Search strategies by name."""
