"""Where and how a model's memory is best searched, measured."""
