"""Attaching a memory to a transformers decoder."""
