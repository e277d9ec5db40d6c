"""Which folder a model's name means; a GGUF file is converted once, into the cache folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmr.cli.errors import UsageError
from cmr.demo import conversion, smollm2
from cmr.errors import CMRError


def folder_of(name: str) -> str:
    """The folder of a GGUF file's converted model; any other name of a model as it is.

    Raises:
        UsageError: there is no such file or folder, or it is none that transformers can read.
        MissingDemoDependencyError: a package is not installed that reads it.
    """
    file = Path(name)
    if file.suffix.lower() != ".gguf":
        # Asked for a path, a hub would be looked for, again and again where there is no network.
        if file.is_file():
            raise UsageError(f"--model {name}: is a file; give its folder, or a .gguf file")
        if _is_path(name) and not file.is_dir():
            raise UsageError(f"--model {name}: no such folder")
        return name
    if not file.is_file():
        raise UsageError(f"--model {name}: no such file")
    if _is_the_small_one(file):
        return str(smollm2.converted())
    folder = conversion.cache_folder(file.stem, _identity(file))
    if not conversion.is_complete(folder):
        try:
            conversion.convert_into(folder, lambda: conversion.read_gguf(file, file.stem))
        except CMRError:
            raise
        except Exception as error:
            # The packages that read it raise whatever they stumble over.
            said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UsageError(
                f"--model {name}: cannot be converted: {said}; "
                "give the folder that the file was made of"
            ) from error
    return str(folder)


def _is_path(name: str) -> bool:
    """Whether it can be no name on a hub, which has a slash at most and begins with a letter."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _is_the_small_one(file: Path) -> bool:
    """Whether it is the demo's, whose conversion is mended."""
    try:
        return file.samefile(smollm2.find_gguf())
    except CMRError:
        return False


def _identity(file: Path) -> Iterator[bytes]:
    """What stands for the file's bytes, of which there may be many gigabytes."""
    told = file.stat()
    yield f"{file.resolve()}:{told.st_size}:{told.st_mtime_ns}".encode()
