"""What a bounded store still holds when it is asked for."""
