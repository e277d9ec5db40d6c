"""``cmr evaluate``: its options, and what it does."""
