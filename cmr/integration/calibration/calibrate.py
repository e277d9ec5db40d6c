"""`cmr.calibrate`: measures for one model where and how its memory is best searched."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from cmr.errors import AttachError, ConfigError
from cmr.integration.calibration.facts import CHUNK, FACTS, chunks, encode, ordinary_text
from cmr.integration.calibration.files import file_name, folder
from cmr.integration.calibration.run import Run
from cmr.integration.calibration.states import plant
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.partial_pass import at_rest
from cmr.integration.detection import adapt
from cmr.integration.memory import ATTACHED
from cmr.integration.progress import told
from cmr.retrieval.calibration import Calibration

TOKENS = 36_000
"""Tokens of ordinary text that are read when no text is given."""
WIDTHS: tuple[int | None, ...] = (None, 128, 192, 256, 384)
"""Widths that are tried when none are given."""
FIRST_SHARE, LAST_SHARE = 0.15, 0.6
"""Range of the layers that are tried, as shares of the depth."""
PER_WIDTH = 8
"""Tokens that a whitening needs for each of its directions."""
FEWEST_TOKENS = 2_048
"""Tokens of the shortest text that says anything about a search."""


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    *,
    text: str | None = None,
    layers: Sequence[int] | None = None,
    widths: Sequence[int | None] | None = None,
    save: bool = True,
    progress: bool | Callable[[int, int], None] = False,
    seed: int = 0,
    name: str | None = None,
) -> Calibration:
    """Measure for a model where its memory is best searched, and save it beside the model's name.

    A text with 48 planted facts is read, and each fact asked for in its own words and twice in
    others. For every layer tried, as it is and whitened to each width, the reciprocal rank of the
    right passage is averaged over the questions, paraphrases counting double, and over the layer's
    neighbours. Of the candidates that the best one does not beat beyond the noise, the narrowest is
    chosen, and of several as narrow the one at the lowest layer, which a query reaches first. Then
    come the attention heads that tell passages apart, and how well passages fit what none of them
    answers: questions when no fact is there, and the facts as running text. The layers that are
    read are not measured: `target_layers` stays None, the usual range.

    Args:
        model: a decoder of a covered family without a memory. It is left as it was.
        tokenizer: its tokenizer; questions are put in its chat template where it has one.
        text: ordinary text of the kind that will be remembered, best of 100,000 characters or
            more; None: documentation of Python and its library, 36,000 tokens of it.
        layers: hidden states to try; None: every second one from 15 % to 60 % of the depth.
        widths: of the whitened index, None for states as they are; by default None, 128, 192, 256
            and 384, as far as they are below the hidden size.
        save: whether to write it to `calibrations` in the cache folder, where it is found again.
        progress: True shows a bar; a function is called with tokens done and tokens in all.
        seed: of the text's order and of the smaller memories that are looked at.
        name: of the model, for people and the file; None: as the model calls itself.

    Returns:
        What was measured. Its `measured` holds a row for each candidate.

    Raises:
        AttachError: the model has a memory attached.
        ConfigError: no tokenizer, a layer or width that the model does not have, or a text that is
            too short.
        UnsupportedModelError: the model is not a decoder of a covered family.

    Source: Su et al. (2021), whitening sentence representations; Khattab and Zaharia (2020), late
    interaction.
    """
    if hasattr(model, ATTACHED):
        raise AttachError("calibrate: this model has a memory attached; detach() that one first")
    adapter = adapt(model)
    if not callable(tokenizer):
        raise ConfigError(
            f"calibrate: the model's tokenizer expected, got {type(tokenizer).__name__}"
        )
    tried, wanted = _layers(adapter, layers), _widths(adapter, widths)
    needed = max(FEWEST_TOKENS, PER_WIDTH * max((width or 0 for width in wanted), default=0))
    pieces = _pieces(tokenizer, text, needed, seed)
    planted = plant(tokenizer, pieces, FACTS)
    run = Run(adapter, tokenizer, planted, FACTS, seed)
    # The chosen layer and then the heads of the layers below it are read once more.
    total = run.tokens(len(tried)) + 2 * run.tokens(1)
    with at_rest(model), told(progress, total, "calibrating") as show:
        trials = run.trials(tried, wanted, show)
        best = run.choose(trials)
        found, heads = run.look_closely(best, show)
        show(total)
    measured = {
        "tokens": len(planted.ids),
        "seed": seed,
        "text": "python" if text is None else "given",
        "candidates": [run.row(trial) for trial in trials],
        "heads": heads,
    }
    # The name is for people only: a file is found again by the model's identity.
    called = name or str(getattr(adapter.config, "_name_or_path", "") or adapter.config.model_type)
    found = replace(found, model=called.rstrip("/").rpartition("/")[2], measured=measured)
    if save:
        found.save(folder() / file_name(found))
    return found


def _layers(adapter: ModelAdapter, wanted: Sequence[int] | None) -> list[int]:
    if wanted is None:
        first = max(1, round(adapter.depth * FIRST_SHARE))
        last = max(first, min(adapter.depth - 1, round(adapter.depth * LAST_SHARE)))
        return list(range(first + (first % 2 and first < last), last + 1, 2))
    if not wanted:
        raise ConfigError("calibrate: at least one layer expected, got none")
    return sorted({adapter.index_layer(layer) for layer in wanted})


def _widths(adapter: ModelAdapter, wanted: Sequence[int | None] | None) -> list[int | None]:
    if wanted is None:
        return [width for width in WIDTHS if width is None or width < adapter.hidden]
    if not wanted:
        raise ConfigError("calibrate: at least one width expected, got none")
    for width in wanted:
        if width is not None and not 0 < width < adapter.hidden:
            raise ConfigError(
                f"calibrate: a width of 1 to {adapter.hidden - 1} expected (below the model's "
                f"hidden size), got {width}"
            )
    return list(dict.fromkeys(wanted))


def _pieces(tokenizer: Any, text: str | None, needed: int, seed: int) -> list[list[int]]:
    """Token ids of pieces of ordinary text, enough of them for every fact to have its place."""
    if text is None:
        found = ordinary_text(tokenizer, TOKENS, seed)
    else:
        # A short text is cut finer, so that every fact has a piece to stand behind.
        size = min(CHUNK, max(1, len(text) // (4 * len(FACTS))))
        found = [encode(tokenizer, piece + "\n\n") for piece in chunks(text, size)]
        random.Random(seed).shuffle(found)
    got = sum(map(len, found))
    if got < needed or len(found) <= len(FACTS):
        raise ConfigError(
            f"calibrate: a text of {needed} tokens in {len(FACTS) + 1} pieces expected for the "
            f"widths asked for, got {got} tokens in {len(found)} pieces"
        )
    return found
