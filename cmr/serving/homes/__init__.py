"""Several servers on one folder: each session is at home in one of them at a time."""
