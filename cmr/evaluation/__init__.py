"""Evaluation: a memory, and what else answers questions about a text, on one's own documents."""
