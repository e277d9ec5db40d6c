"""What is measured, a part a module: `begin(run)` does all of it."""
