"""A memory for everybody who talks to a model, over HTTP: `cmr serve` (docs/serving.md)."""
