"""What was measured for one model: where to search, through which projection, with which heads."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cmr.errors import ConfigError

FORMAT = "cmr-calibration-1"
TENSORS = ("mean", "projection")
"""Fields that a file holds as tensors; the others are JSON in its header."""
Null = tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """Settings of the search that were measured for one model; made by `cmr.calibrate`.

    States at the index layer lie in a narrow cone, and a few directions rule every cosine. Centred,
    projected on the directions in which states of ordinary text vary most, and divided by how much
    they do, tokens that mean the same come closer than tokens that stand in the same kind of place.

    Attributes:
        model: the model's name, for people.
        identity: which weights it was measured on, as `decoder.fingerprint` tells them apart.
        index_layer: hidden state that is indexed and searched.
        mean: `[hidden]` float32, mean state of ordinary text; None: not centred.
        projection: `[hidden, width]` float32 that whitens; None: states are taken as they are.
        heads: (layer, query head) pairs whose attention tells passages apart, best first.
        target_layers: layers that are stored and read; None: the usual range.
        question_null: best score of a passage when nothing fits a question that was located, as
            (base, slope): base + slope * ln(blocks).
        text_null: the same where the query is the newest tokens of a text.
        measured: how it was chosen: what each candidate found. Plain JSON.

    Source: Su et al. (2021), whitening sentence representations.
    """

    model: str
    identity: str
    index_layer: int
    mean: torch.Tensor | None = None
    projection: torch.Tensor | None = None
    heads: tuple[tuple[int, int], ...] = ()
    target_layers: tuple[int, ...] | None = None
    question_null: Null = (0.70, 0.18)
    text_null: Null = (0.70, 0.18)
    measured: dict[str, Any] = field(default_factory=dict)

    def index(self, states: torch.Tensor) -> torch.Tensor:
        """What is indexed and searched of states `[..., hidden]`: `[..., width]` of norm 1.

        The dtype stays, and without a projection the states do.
        """
        if self.projection is None:
            return states
        # In float32 whatever the states' dtype: a few directions rule, and the rest is small.
        unit = F.normalize(states.float(), dim=-1)
        # A state of zeros matches nothing, and has to stay one when the mean is taken off.
        held = (unit != 0).any(-1, keepdim=True)
        if self.mean is not None:
            unit = unit - self.mean
        return (F.normalize(unit @ self.projection, dim=-1) * held).to(states.dtype)

    def to(self, device: torch.device) -> Calibration:
        """The same with its tensors on a device, so that no search has to bring them there."""
        mean = None if self.mean is None else self.mean.to(device)
        projection = None if self.projection is None else self.projection.to(device)
        return replace(self, mean=mean, projection=projection)

    def width(self, hidden: int) -> int:
        """Width of what is indexed of states that are `hidden` wide."""
        return hidden if self.projection is None else self.projection.shape[1]

    @property
    def digest(self) -> str:
        """Tells one index from another, as vectors of different ones cannot be compared."""
        found = hashlib.sha256(str(self.index_layer).encode())
        for part in (self.mean, self.projection):
            if part is not None:
                found.update(part.cpu().float().contiguous().numpy().tobytes())
        return found.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a safetensors file, all or nothing; returns the path."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, **{name: getattr(self, name) for name in _written()}}
        tensors = {name: getattr(self, name) for name in TENSORS}
        # In half precision, which halves a file that may come with the package.
        held = {n: t.to(torch.float16).contiguous() for n, t in tensors.items() if t is not None}
        # Under another name first: a file that is there is whole.
        draft = path.with_name(path.name + ".part")
        save_file(held, str(draft), {"calibration": json.dumps(about)})
        os.replace(draft, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ConfigError: there is no such file, or it holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("calibration", "{}"))
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(
                f"calibration: a file of cmr.calibrate expected, got {path}: {error}"
            ) from None
        if about.get("format") != FORMAT:
            raise ConfigError(
                f"calibration: format {FORMAT!r} expected, got {about.get('format')!r} in {path}"
            )
        given = {name: about[name] for name in _written()}
        # JSON knows lists only; `heads` and layers are compared with tuples, and hashed.
        given["heads"] = tuple((int(layer), int(head)) for layer, head in given["heads"])
        if given["target_layers"] is not None:
            given["target_layers"] = tuple(int(layer) for layer in given["target_layers"])
        for name in ("question_null", "text_null"):
            given[name] = tuple(float(number) for number in given[name])
        return cls(mean=tensors.get("mean"), projection=tensors.get("projection"), **given)


def _written() -> list[str]:
    return [field.name for field in fields(Calibration) if field.name not in TENSORS]
