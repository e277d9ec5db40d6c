"""Commands that look whether something is well: an installation, a running server."""
