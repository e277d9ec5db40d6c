"""Random operations, each held against what the oracle knows."""
