"""What is left where something breaks half-way."""
