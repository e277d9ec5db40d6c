"""The specification's package of models: its modules, under the names that they have there."""

from __future__ import annotations

from cmr._names import passed_on

__all__, __getattr__, __dir__ = passed_on(__name__, "CMRTransformer")
