"""Measurements of what the memory recalls, what it costs and what it leaves unharmed."""
