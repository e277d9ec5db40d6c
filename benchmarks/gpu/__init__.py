"""What is to be known of a GPU in one command: is it right there, how fast, what is far off."""
