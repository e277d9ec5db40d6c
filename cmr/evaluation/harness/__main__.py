"""The command line of lm-eval, which knows the model `cmr` here."""

from __future__ import annotations

import sys


def main() -> None:
    """Registers the model and leaves the rest to lm-eval."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from cmr.evaluation.harness import model
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        sys.exit("error: lm-eval is not installed: run `pip install 'cmr[harness]'`")
    model.register()
    cli_evaluate()


if __name__ == "__main__":
    main()
