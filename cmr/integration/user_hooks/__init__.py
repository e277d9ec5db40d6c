"""Hooks of one's own by name: on states, attention, gradients and any module."""
