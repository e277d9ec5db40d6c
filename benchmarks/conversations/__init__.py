"""Public conversations of people: what a search finds of the turns that answer a question."""
