"""Another server runs the model: how it is asked (`client.py`), and with what (`asking.py`)."""
