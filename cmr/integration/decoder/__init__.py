"""A transformers decoder seen as data: its blocks, its family, its fingerprint."""
