"""A bounded store of single hidden states by layer, that needs no model."""
