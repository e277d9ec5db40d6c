"""The exception types of this package.

Every error says what was wrong and what was expected. Each type also derives from the built-in
exception that fits, so that callers who know nothing of this package can still catch it.
"""

from __future__ import annotations


class CMRError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(CMRError, ValueError):
    """A setting is unknown, has the wrong type or lies outside its range."""


class UnsupportedModelError(CMRError, TypeError):
    """The object is not a decoder, or of a family that is not described."""


class ModelNotFoundError(CMRError, OSError):
    """There is no model of that name to be had here; the message says what to do."""


class UnknownSessionError(CMRError, KeyError):
    """No session of that name has a memory."""

    def __str__(self) -> str:
        """The plain message; `KeyError` alone would show its `repr`."""
        return str(self.args[0]) if self.args else ""


class SessionNameError(CMRError, ValueError):
    """A text cannot name a session, or names one that is there already."""


class SessionError(CMRError, RuntimeError):
    """It cannot be told whose request this is; the message names the handle that says it."""


class ModelMismatchError(CMRError, ValueError):
    """A memory belongs to another model, shape, dtype or device."""


class NonFiniteStateError(CMRError, ValueError):
    """The model computed infinite or NaN states, which are never stored; the message says where."""


class AttachError(CMRError, RuntimeError):
    """A model is already attached, or a memory is used after it was detached."""


class KernelError(CMRError, RuntimeError):
    """An implementation of the kernels was asked for that cannot run here."""


class EvaluationError(CMRError, ValueError):
    """Documents, questions or systems of an evaluation are not what is expected."""


class StoreError(CMRError):
    """A memory could not be saved, opened or changed on disk."""


class MemoryNotFoundError(StoreError, FileNotFoundError):
    """There is no saved memory at the given path."""


class CorruptMemoryError(StoreError, ValueError):
    """A file of a saved memory is damaged, or not what its manifest says; the message names it."""


class NewerFormatError(StoreError, ValueError):
    """A saved memory has a format that only a newer version of this package knows."""


class MemoryKeyError(StoreError, ValueError):
    """The key of an encrypted memory is missing, wrong or of the wrong kind."""


class StoreBusyError(StoreError, RuntimeError):
    """Another process is saving to the folder, or reading what is to be erased."""


class MissingPackageError(StoreError, ImportError):
    """An optional package that the request needs is not installed; the message says which."""


class CMRWarning(UserWarning):
    """Something asked for does less than it seems; said once, with the remedy."""
