"""The calibration that an attached memory works with."""

from __future__ import annotations

from cmr.config import RetrievalConfig
from cmr.errors import ConfigError
from cmr.integration.calibration.files import find
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.fingerprint import identity
from cmr.retrieval.calibration import Calibration


def calibration_for(adapter: ModelAdapter, config: RetrievalConfig) -> Calibration | None:
    """What was measured for a model, as far as the settings let it hold.

    Args:
        adapter: the model.
        config: `calibration` says which; where `index_layer` names another layer than the one that
            was measured, nothing holds.

    Raises:
        ConfigError: the file named holds no calibration, or one of another model.
    """
    if config.calibration == "none":
        return None
    if config.calibration == "auto":
        found = find(adapter)
    else:
        found = Calibration.load(config.calibration)
        if found.identity != identity(adapter):
            raise ConfigError(
                f"calibration: one of this model expected, got one of {found.model!r} "
                f"in {config.calibration}"
            )
        if config.index_layer not in (None, found.index_layer):
            raise ConfigError(
                f"index_layer: {found.index_layer} expected, as {config.calibration} says, "
                f"got {config.index_layer}"
            )
    if found is None or config.index_layer not in (None, found.index_layer):
        return None
    return found
