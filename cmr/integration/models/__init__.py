"""Models with a memory: modules around a decoder, as the specification names them."""
