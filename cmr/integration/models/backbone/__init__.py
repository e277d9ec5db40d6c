"""The decoder of a model class: by name, from a folder, or made of a description."""
