"""What the benchmarks share: rows, command lines, answers and statistics."""
