"""The page of an evaluation: one file of HTML, plots drawn from the rows."""
