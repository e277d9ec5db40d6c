"""Models that are measured beside the small one: brought once, by name."""
