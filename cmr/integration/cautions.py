"""Legal settings that recall little or nothing, said when a memory is built."""

from __future__ import annotations

from cmr._warning import warn
from cmr.config import STATE_METHODS
from cmr.integration.core import Core

LEAST_WEIGHT = 0.5
"""Fixed `memory_weight` below which hardly anything is recalled."""


def caution(core: Core) -> None:
    """Warn of layers and of a weight that recall little or nothing; docs/how-it-works.md says why.

    Of nothing where memory is off on purpose, or where states are blended: no layer is better than
    another there.
    """
    reweave = core.config.reweave
    if reweave.method in STATE_METHODS or not core.layout.read_layers:
        return
    _of_layers(core)
    weight = reweave.memory_weight
    if not isinstance(weight, str) and weight < LEAST_WEIGHT:
        warn(
            f"memory_weight={weight:g}: below {LEAST_WEIGHT:g} the window drowns what is recalled, "
            "and little or nothing was answered where it was measured; 'auto' (the default) reads "
            "as strongly as the search is sure, 0.88 always strongly, and 0 turns memory off"
        )


def caution_captured(core: Core, captured: tuple[int, ...] | None) -> None:
    """Warn where layers with gaps are captured that memory is not read at.

    Args:
        core: the memory's store and settings.
        captured: the states that a model class captures; None: nothing was said.
    """
    reweave = core.config.reweave
    if reweave.method in STATE_METHODS or reweave.layers is not None or not core.layout.read_layers:
        return
    if not captured or len(captured) == captured[-1] - captured[0] + 1:
        return
    read = sorted(core.layout.read_layers)
    warn(
        f"target_layers={list(captured)}: their states are captured, and memory is read at layers "
        f"{read[0]} to {read[-1]}: reading at layers with gaps recalled nothing where it was "
        "measured. intervention_layers names other layers to read at"
    )


def _of_layers(core: Core) -> None:
    """Reading may begin up to half of the range later, and leaves none out behind that."""
    measured = core.calibration.target_layers if core.calibration else None
    usual, read = core.adapter.target_layers(measured), core.layout.read_layers
    unread = tuple(layer for layer in usual if layer not in read)
    if unread == usual[: len(unread)] and 2 * len(unread) <= len(usual):
        return
    name = "target_layers" if core.config.reweave.layers is None else "intervention_layers"
    warn(
        f"{name}={sorted(read)}: memory is read at layers {usual[0]} to {usual[-1]} together, as "
        f"each goes on from what those before it have read; without {list(unread)} most of what is "
        "recalled may be lost or all of it, as with every second layer where it was measured. "
        f"Leave {name} out, or name all of them"
    )
