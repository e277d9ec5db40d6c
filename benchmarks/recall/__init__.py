"""Answers to questions about what was read."""
