"""What watches a running memory and never steers it."""
