"""The hooks around a decoder: one forward, one generate, and hooks by name."""
