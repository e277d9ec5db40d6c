"""What tells one model from another, and one tokenizer from another."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from cmr.errors import ModelMismatchError
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.integration.decoder.adapter_watch import (
    WRAPPED,
    adapter_layers,
    described,
    in_effect,
    without_wrapper,
)
from cmr.integration.decoder.placement import named_weights

SAMPLE = 64
"""Numbers looked at of each parameter, spread over it."""
PACKED_ROWS = 32
"""Rows looked at of 4-bit weights: those that bitsandbytes lays out together on a CPU."""
_TOKENIZERS: weakref.WeakKeyDictionary[Any, tuple[Any, str]] = weakref.WeakKeyDictionary()


def of_model(adapter: ModelAdapter) -> dict[str, Any]:
    """Shape, data type and a hash of a sample of all weights: the same in every process."""
    # Those of adapters are left out, see `adapters`: with all of them off a model is the one that
    # it was without them. Plain JSON.
    # Sorted, so that the order in which modules were added does not count.
    digest = hashlib.sha256()
    _add(digest, sorted(_own_weights(adapter.model), key=lambda named: named[0]))
    return {
        "family": adapter.config.model_type,
        "hidden_size": adapter.hidden,
        "layers": adapter.depth,
        "kv_heads": adapter.kv_heads,
        "head_dim": adapter.head_dim,
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "weights": digest.hexdigest(),
    }


def adapters(model: Any, names: Collection[str] | None = None) -> dict[str, str]:
    """A hash of a sample of the weights of a model's adapters (LoRA and its like, by PEFT).

    Adapter name to 64 hexadecimal digits, empty for one that the model does not have. `names` None:
    of those in effect, merged ones among them.
    """
    layers = dict(adapter_layers(model))
    wanted = in_effect(layers.values()) if names is None else names
    return {name: _of_adapter(layers, name) for name in sorted(wanted)}


def _of_adapter(layers: dict[str, Any], name: str) -> str:
    digest, found = hashlib.sha256(), False
    for path, layer in sorted(layers.items()):
        # In these stand an adapter's weights, and numbers such as how strong it is, by its name.
        for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
            held: Any = getattr(layer, attribute, None)
            if name not in getattr(held, "keys", tuple)():
                continue
            digest.update(f"{_bare(path, layers)} {attribute}".encode())
            part = held[name]
            if isinstance(part, (bool, int, float, str)):
                # How strong it is, how wide.
                digest.update(repr(part).encode())
                continue
            one = isinstance(part, torch.Tensor)
            weights = [("", part)] if one else list(named_weights(part))
            found = found or bool(weights)
            _add(digest, weights)
    return digest.hexdigest() if found else ""


def _own_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model without those of its adapters, by the names that they had before."""
    layers = dict(adapter_layers(model))
    for name, weight in named_weights(without_wrapper(model)):
        bare = _bare(name, layers)
        if bare is not None:
            yield bare, weight


def _bare(name: str, layers: Collection[str]) -> str | None:
    """A name as it was before adapter layers came; None for a part of an adapter."""
    if not layers:
        return name
    kept: list[str] = []
    parts = name.split(".")
    for at, part in enumerate(parts):
        if ".".join(parts[:at]) not in layers:
            kept.append(part)
        elif part not in WRAPPED:
            return None
    return ".".join(kept)


def _add(digest: Any, weights: Sequence[tuple[str, torch.Tensor]]) -> None:
    samples = [sample(weight) for _, weight in weights]
    numbers = bytes_of([some for _, some in samples])
    for (name, weight), (shape, _), some in zip(weights, samples, numbers, strict=True):
        digest.update(f"{name} {list(shape)} {weight.dtype}".encode())
        digest.update(some)


def bytes_of(samples: Sequence[torch.Tensor]) -> list[bytes]:
    """What samples `[n]` have in memory; a device is asked once for all of a data type."""
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for place, some in enumerate(samples):
        alike[some.device, some.dtype].append(place)
    found = [b""] * len(samples)
    for places in alike.values():
        whole = torch.cat([samples[place] for place in places]).cpu()
        parts = whole.split([len(samples[place]) for place in places])
        for place, part in zip(places, parts, strict=True):
            found[place] = part.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def sample(weight: torch.Tensor) -> tuple[torch.Size, torch.Tensor]:
    """Shape of a weight and a few numbers of it."""
    # Of 4-bit weights, which are laid out anew by the first forward on a CPU, it is how often each
    # of the 16 values is found in the first rows: that stays.
    # A sample: hashing all weights would take as long as reading them from a disk.
    state = getattr(weight, "quant_state", None)
    flat = weight.detach().reshape(-1)
    if state is None:
        return weight.shape, flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE]
    packed = flat.view(torch.uint8)[: PACKED_ROWS * state.shape[-1] // 2].long()
    found = torch.bincount(torch.cat([packed >> 4, packed & 15]), minlength=16)
    return state.shape, found


def of_tokenizer(tokenizer: Any) -> str | None:
    """A hash of the vocabulary; None where there is no tokenizer."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    # It takes a tenth of a second and more for tens of thousands of tokens, and every save asks for
    # it. A tokenizer's own vocabulary is part of it; what changes is what was added.
    added = tokenizer.get_added_vocab() if hasattr(tokenizer, "get_added_vocab") else None
    known = None if added is None else _TOKENIZERS.get(tokenizer)
    if known is not None and known[0] == added:
        return known[1]
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    found = hashlib.sha256(vocabulary.encode()).hexdigest()
    if added is not None:
        _TOKENIZERS[tokenizer] = added, found
    return found


def difference(saved: dict[str, Any], here: dict[str, Any]) -> str | None:
    """The first difference between what is of one model and the model here; None: there is none."""
    for name, value in here.items():
        if saved.get(name) != value:
            if name == "weights":
                return "other weights"
            return f"{name} {value} expected (from this model), got {saved.get(name)}"
    return None


def require_same(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises `ModelMismatchError` that names the first difference."""
    other = difference(saved, here)
    if other is not None:
        raise ModelMismatchError(f"this memory was saved by another model: {other}")


def require_same_adapters(session: str, read: dict[str, str], here: dict[str, str]) -> None:
    """Raises `ModelMismatchError` where a session was read with other adapters than are in effect.

    `read` and `here` are hashes by adapter name, of when it was saved and of now.
    """
    if read == here:
        return
    if read.keys() == here.keys():
        other = sorted(name for name in read if read[name] != here[name])
        raise ModelMismatchError(
            f"session {session!r} was read with {described(other)} of other weights: load the ones "
            "that it was read with, or read its text again"
        )
    raise ModelMismatchError(
        f"session {session!r} was read with {described(read)}, and the model has "
        f"{described(here)} in effect: switch to {described(read)} before loading, or read its "
        "text again"
    )


def require_same_tokenizer(saved: str | None, here: str | None) -> None:
    """Raises `ModelMismatchError` where both are known and differ."""
    if saved is not None and here is not None and saved != here:
        raise ModelMismatchError(
            "this memory was saved with another tokenizer: its token ids would mean other text"
        )
