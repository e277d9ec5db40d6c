"""``python -m cmr``: the command line, where ``cmr`` is not in the path."""

from cmr.cli import main

main()
