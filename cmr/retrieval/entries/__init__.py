"""The same searches over the single entries of a buffer."""
