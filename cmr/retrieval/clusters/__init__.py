"""Passages out of very many blocks, by FAISS clusters."""
