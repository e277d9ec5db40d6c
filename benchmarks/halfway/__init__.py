"""What breaks half-way, or comes from somewhere else: nothing is lost, nothing foreign gets in."""
