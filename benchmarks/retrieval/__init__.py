"""What the search finds, and where."""
