"""A decoder by name, from a folder, a configuration, or as it was loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmr.errors import ConfigError, MissingPackageError, ModelNotFoundError
from cmr.integration.models.backbone.descriptions import config_of, random_model
from cmr.integration.models.backbone.quantisation import quantisation


def load_backbone(
    source: Any,
    *,
    config: Any = None,
    device: str | torch.device | None = None,
    quantization: Any = None,
    use_quantization: bool | None = None,
    dtype: torch.dtype | str | None = None,
    expect: Callable[[Any], None] | None = None,
    **options: Any,
) -> nn.Module:
    """A decoder with a language-model head, in evaluation mode, on its device.

    Args:
        source: a loaded model (left as it is, but for its device), a name or folder of a model, or
            a description of one, see `config_of`, which gets random weights.
        config: with a name or folder, the configuration to load it with; None: its own.
        device: 'cpu', 'cuda', 'cuda:1', …; 'auto': all GPUs where there are several, else the one,
            else the CPU; None: a loaded model stays where it is, others are made on the CPU.
        quantization: '8bit', '4bit', a `BitsAndBytesConfig`, or None; needs weights to load.
        use_quantization: True: the same as '8bit'.
        dtype: of the weights; None: as saved, or as the configuration says.
        expect: looks at the configuration before weights are loaded, and raises what it does not
            like.
        **options: for `AutoModelForCausalLM.from_pretrained`, such as `revision` or `token`.

    Raises:
        ModelNotFoundError: there is no model of that name to be had here; nothing is loaded in its
            place.
        ConfigError: arguments contradict each other, or the device is not there.
        MissingPackageError: quantised weights, or several GPUs, need a package.
    """
    quantised = quantisation(quantization, use_quantization)
    where = device_of(device)
    if not isinstance(source, str | os.PathLike):
        loaded = isinstance(source, nn.Module)
        # Arguments that would be ignored are refused.
        refused = {"quantization": quantised, "config": config, **options}
        for name, value in {**refused, "dtype": dtype if loaded else None}.items():
            if value is not None:
                what = "a loaded model" if loaded else "random weights"
                raise ConfigError(
                    f"{name}: a name or a folder of weights expected with it, got {what}"
                )
        source = source if loaded else config_of(source)
        if expect is not None:
            expect(source)
        return _moved(source if loaded else random_model(source, dtype), where)
    # A family that is not expected is refused before gigabytes are loaded.
    if expect is not None:
        expect(config_at(source, **options))
    if config is not None:
        options["config"] = config_of(config)
    if quantised is not None:
        options["quantization_config"] = quantised
    if dtype is not None:
        options["dtype"] = dtype
    # Transformers places these itself, tensor by tensor: quantised weights cannot be moved, and
    # the weights of a model for several GPUs do not fit one.
    mapped = quantised is not None or where == "auto"
    if mapped:
        if importlib.util.find_spec("accelerate") is None:
            raise MissingPackageError("several GPUs and quantised weights need accelerate: "
                                      "pip install accelerate")  # fmt: skip
        options["device_map"] = "auto" if where == "auto" else {"": where or "cpu"}
    from transformers import AutoModelForCausalLM

    model: nn.Module = _found(AutoModelForCausalLM, source, options).eval()
    return model if mapped else _moved(model, where)


def device_of(wanted: str | torch.device | None) -> str | None:
    """Where a model goes: a device that is here, 'auto' for several GPUs, None: where it is."""
    if wanted is None:
        return None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "auto" if gpus > 1 else "cuda" if gpus else "cpu"
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        known = "'cpu', 'cuda', 'auto' or None"
        raise ConfigError(f"device: {known} expected, got {wanted!r}") from error
    if device.type == "cuda" and (device.index or 0) >= gpus:
        have = f"{gpus} CUDA devices" if gpus else "no CUDA device"
        raise ConfigError(
            f"device: {str(wanted)!r} was asked for and PyTorch {torch.__version__} sees {have}; "
            "use device='cpu' or 'auto'"
        )
    return str(device)


def config_at(source: str | os.PathLike[str], **options: Any) -> Any:
    """The configuration of a model by name or in a folder."""
    from transformers import AutoConfig

    wanted = ("revision", "token", "trust_remote_code", "cache_dir", "subfolder")
    return _found(AutoConfig, source, {name: options[name] for name in wanted if name in options})


def _found(kind: Any, source: str | os.PathLike[str], options: dict[str, Any]) -> Any:
    """What `from_pretrained` gives; a model that is not to be had is told with what to do."""
    name = os.fspath(source)
    folder = Path(name)
    if folder.is_dir() and not any(folder.rglob("config.json")) and not any(folder.glob("*.gguf")):
        raise ModelNotFoundError(f"{folder} is a folder without config.json: no model is in it")
    try:
        return kind.from_pretrained(name, **options)
    except OSError as error:
        # Transformers raises OSError for all of it: unknown names, no network, gated models.
        if folder.is_dir():  # it is there: what is wrong with it says the error itself
            raise
        raise ModelNotFoundError(
            f"no model {name!r} is to be had here, and no other one is loaded in its place. If it "
            "is a folder, look at the path. If it is a name on the Hugging Face hub: is it spelt "
            "right, is there a network (HF_HUB_OFFLINE is "
            f"{os.environ.get('HF_HUB_OFFLINE', 'not set')}), and if it is gated, have you "
            "accepted its terms and logged in (`hf auth login`)? Without a network, download it "
            "where there is one (`hf download`) and give the folder; for random weights give a "
            "configuration instead of a name"
        ) from error


def _moved(model: nn.Module, where: str | None) -> nn.Module:
    if where is None:
        return model
    if where == "auto":
        from accelerate import dispatch_model, infer_auto_device_map  # type: ignore[import-untyped]

        kept = getattr(model, "_no_split_modules", None)
        return dispatch_model(model, infer_auto_device_map(model, no_split_module_classes=kept))
    # A model that is there already is left alone: `to` refuses quantised ones.
    devices = {parameter.device for parameter in model.parameters()}
    if devices == {_indexed(where)}:
        return model
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise ConfigError(f"device={where!r}: None expected of a model that is on several devices")
    return model.to(where)


def _indexed(where: str) -> torch.device:
    device = torch.device(where)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
