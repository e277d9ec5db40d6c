"""Which row each measured figure of the documents is of, a file a page.

`DOCUMENT` is the page, `held()` yields what stands in it: sentences, or rows of tables, with the
figures taken out of rows and written as the page writes them. A row is named by its fields, and the
newest that has them is taken: a new measurement changes the page, not the ledger. Where a page
means an older one (before some change), `run=` says which. `tests/docs/test_figures.py` compares,
and finds figures that nothing holds; `python -m tests.docs.figures` says which differ, and with
`--write` puts the newest ones into the pages.
"""
