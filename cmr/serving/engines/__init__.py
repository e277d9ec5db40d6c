"""What answers many clients: `engine.py` is the face; the model runs here, or on another server."""
