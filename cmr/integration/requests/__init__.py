"""Whose request a forward belongs to, and whose turn it is."""
