"""From a model's window to stored blocks."""
