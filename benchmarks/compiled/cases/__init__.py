"""What is compiled: every host function at the shapes and dtypes that are shipped."""

from __future__ import annotations

import importlib
import pkgutil

from benchmarks.compiled.cases._case import Case


def all_cases() -> dict[str, Case]:
    """Every case by its name, from the `CASES` of each module in this folder."""
    found: dict[str, Case] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            cases = importlib.import_module(f"{__name__}.{module.name}").CASES
            for case in cases:
                assert case.name not in found, f"two cases named {case.name}"
                found[case.name] = case
    return found
