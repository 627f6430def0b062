"""Which architectures can a checkpoint name, and how does one register another?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from l0runtime.errors import OptionError, UnsupportedModelError

ModelClass = TypeVar("ModelClass", bound=type[nn.Module])
_ARCHITECTURES: dict[str, type[nn.Module]] = {}


def register_architecture(name: str) -> Callable[[ModelClass], ModelClass]:
    """Class decorator: checkpoints of this class carry `name` and are rebuilt by calling the class with its config.

    An instance must have an attribute `config`, a JSON-able dict of the keyword arguments that rebuild it.

    Raises:
        OptionError: another class already has this name.
    """

    def register(cls: ModelClass) -> ModelClass:
        known = _ARCHITECTURES.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise OptionError(f"architecture {name!r} is already {known.__qualname__}; choose another name.")
        _ARCHITECTURES[name] = cls
        return cls

    return register


def architecture(name: str) -> type[nn.Module]:
    """The class registered under `name`.

    Raises:
        UnsupportedModelError: nothing is registered under that name.
    """
    if name not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedModelError(
            f"architecture {name!r} is unknown; known are {known}. "
            "Import the module that registers it (register_architecture) first."
        )
    return _ARCHITECTURES[name]


def architecture_name(model: nn.Module) -> str | None:
    """The name under which the model's own class is registered, None when it is not."""
    return next((name for name, cls in _ARCHITECTURES.items() if type_before_parametrizations(model) is cls), None)
