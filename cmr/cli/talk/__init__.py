"""What ``ask`` and ``chat`` share while they answer."""
