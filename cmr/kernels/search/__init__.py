"""Steps of a search by what is asked in parts, and of what it reads."""
