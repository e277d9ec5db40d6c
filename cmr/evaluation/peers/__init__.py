"""Systems of others beside a memory, each run in an environment of its own."""
