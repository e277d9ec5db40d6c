"""A memory in folders: saved, loaded, forgotten from."""
