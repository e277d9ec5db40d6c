"""What runs the model for many clients: `engine.py` is the face, `batch_engine.py` the first."""
