"""Which errors can l0runtime raise, and which exit code does each become?

Every message says where, what was found, what was expected and what to do. The tree:

    L0RuntimeError                    exit code 1: refused, or a mismatch; nothing was written
    ├── ModelFileError                a file is missing, truncated, of another format, or from a newer version
    ├── UnsupportedModelError         the model is readable, but this cannot be done with it
    │   └── NoGateError               nothing in the model is gated or exactly zero
    ├── InputError                    a tensor given to a model has the wrong name, shape or dtype
    ├── DeviceError                   the device asked for is absent, or would fall back silently
    ├── MissingDependencyError        an optional package is needed; the message names it
    ├── GateParameterError            hard-concrete constants or a gate shape without a meaning
    ├── QueueFullError                too many requests wait already
    ├── DeadlineError                 a request waited longer than its timeout
    ├── VerificationError             gated and compact disagree by more than rounding explains
    └── OptionError                   exit code 2: an option is unknown or contradicts another
"""

from __future__ import annotations

from typing import ClassVar


class L0RuntimeError(Exception):
    """Base class: catching it catches every error that l0runtime raises on purpose."""

    exit_code: ClassVar[int] = 1


class ModelFileError(L0RuntimeError):
    """A file is missing, truncated, of another format, or written by a newer version."""


class UnsupportedModelError(L0RuntimeError):
    """The model is readable, but what was asked cannot be done with it."""


class NoGateError(UnsupportedModelError):
    """Nothing in the model is gated or exactly zero, so there is nothing to remove."""


class InputError(L0RuntimeError):
    """A tensor given to a model has the wrong name, shape or dtype."""


class DeviceError(L0RuntimeError):
    """The device asked for is absent, or part of the model would run elsewhere."""


class MissingDependencyError(L0RuntimeError):
    """An optional package is needed; the message names it and how to install it."""


class GateParameterError(L0RuntimeError, ValueError):
    """Hard-concrete constants, or a gate shape, without a meaning."""


class QueueFullError(L0RuntimeError):
    """Too many requests wait already, or the queue is closed."""


class DeadlineError(L0RuntimeError):
    """A request waited longer than its timeout."""


class VerificationError(L0RuntimeError):
    """Gated and compact model disagree by more than rounding explains; no file was written."""


class OptionError(L0RuntimeError, ValueError):
    """An option is unknown or contradicts another."""

    exit_code: ClassVar[int] = 2
