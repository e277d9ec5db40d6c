"""What memory costs: time, bytes, and the loss on ordinary text."""
