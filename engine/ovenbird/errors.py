"""What can go wrong, as one tree.

    OvenbirdError
    ├── RequestError(ValueError)             2  a setting is wrong; nothing was computed
    ├── ModelError(ValueError)               3  a model folder is missing, damaged or of an unknown kind
    ├── MissingExtraError(ImportError)       3  an optional package is not installed
    ├── ResourceError(OSError)               4  memory, disk or device cannot do it
    ├── NumericError(ArithmeticError)        5  a result is not finite, or misses its gate
    └── Cancelled                          130  somebody stopped the run

The number is the exit code of the command line.
"""

from __future__ import annotations

from typing import Any


class OvenbirdError(Exception):
    """The base of everything raised on purpose; ``hint`` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def hint(self) -> str | None:
        """What to do about it, which a traceback shows, too."""
        return self._hint

    @hint.setter
    def hint(self, hint: str | None) -> None:
        self._hint = hint
        self.__notes__ = [f"hint: {hint}"] if hint else []


class RequestError(OvenbirdError, ValueError):
    """A setting is wrong; raised before any model is read."""

    exit_code = 2


class ModelError(OvenbirdError, ValueError):
    """A model folder is missing, damaged, or of a kind that is not known."""

    exit_code = 3


class MissingExtraError(OvenbirdError, ImportError):
    """An optional package is not installed."""

    exit_code = 3

    def __init__(self, package: str, extra: str, why: str = "") -> None:
        super().__init__(f"{why}{package} is not installed", hint=f'pip install "ovenbird[{extra}]"')
        self.name = package


class ResourceError(OvenbirdError, OSError):
    """Memory, disk or device cannot do what was asked."""

    exit_code = 4


class NumericError(OvenbirdError, ArithmeticError):
    """A result is not finite, or misses its gate."""

    exit_code = 5


class Cancelled(OvenbirdError):
    """Somebody stopped the run; of ``Pipeline.generate``, ``result`` has what was finished."""

    exit_code = 130
    result: Any = None
