"""The bounded cache: what a model sees at once, and what leaves it."""
