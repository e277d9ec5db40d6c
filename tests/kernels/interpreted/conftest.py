"""These tests run the Triton kernels through Triton's interpreter, in a process of their own.

`tests/kernels/test_interpreter.py` starts that process, once for each version of Triton; an
ordinary run collects nothing here.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    from tests.kernels.interpreted import faithful

    faithful.install()
