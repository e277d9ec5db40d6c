"""What is read: real text with planted facts, and the questions about them."""
