"""How do stored parameters get into a module: where are they in the file, which module, and do they all fit?

Shared by the formats whose file holds parameters but no architecture. The factory of the architecture is called
without arguments and returns the module, or the module and its example inputs. Every parameter must be there, fit and
be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.example_inputs import find_example_inputs
from converters.live_module import check_tensors, from_module
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions, resolve_model_factory
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# where training scripts keep the state dict in what they save
_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile
_SHOWN = 3


def find_state(content: object) -> Mapping[str, Any] | None:
    """The state dict in what torch.save wrote: names and tensors only, alone or under a usual key."""
    import torch

    if not isinstance(content, Mapping):
        return None
    for candidate in (content, *(content.get(key) for key in _KEYS)):
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(tensor, torch.Tensor) for tensor in candidate.values())
        ):
            return candidate
    return None


def names_in(file: Candidate) -> frozenset[str]:
    """Names of the parameters in a file, without reading their values; empty where it holds no state dict."""
    if file.is_safetensors:
        return frozenset(str(name) for name in file.header if name != "__metadata__")
    state = find_state(file.torch_content)
    return frozenset(str(name) for name in state) if state is not None else frozenset()


def read_state(file: Candidate) -> dict[str, Tensor]:
    """The parameters of a safetensors file or of a torch file, by name, without the prefixes of wrappers.

    Raises:
        ModelFileError: truncated, no state dict, or a tensor that is not what it claims.
    """
    from converters.torch_files import tensors_of

    if not file.is_safetensors:
        state = find_state(file.torch_content)
        if state is None:
            raise file.torch_error or ModelFileError(f"{file.path}: holds no state dict of tensors by name.")
        return without_prefixes(tensors_of(state, file.path))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return without_prefixes(load_file(file.path))
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file.path}: truncated, or no safetensors file ({error}).") from error


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the bare module has them, where every name carries the prefix of a wrapper."""
    renamed = dict(state)
    for prefix in _PREFIXES:
        if renamed and all(name.startswith(prefix) for name in renamed):
            renamed = {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
    return renamed


def build_module(model: str | Callable[[], Any]) -> tuple[Module, Any]:
    """What the user's factory makes: the module, and its example inputs or None.

    Raises:
        OptionError: the factory is not found, fails, or gives something else.
    """
    from torch.nn import Module

    factory = resolve_model_factory(model)
    try:
        made = factory()
    except Exception as error:  # the user's own code may fail in any way
        raise OptionError(f"model {model!r}: calling it failed ({type(error).__name__}: {error}).") from error
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, Module):
        raise OptionError(
            f"model {model!r}: gave {type(module).__name__}; expected a torch.nn.Module, or a module and its inputs."
        )
    return module, inputs


def load_parameters(module: Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copy the parameters; every one must be there, fit, and be used.

    Raises:
        ModelFileError: one is missing, left over, or of another shape.
    """
    expected = module.state_dict()
    missing, left_over = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or left_over:
        raise ModelFileError(
            f"{path}: parameters do not fit {type(module).__name__}: missing {_some(missing)}; "
            f"left over {_some(left_over)}."
        )
    for name, tensor in state.items():
        own = expected[name]
        if not name.endswith("_extra_state") and tensor.shape != own.shape:
            raise ModelFileError(
                f"{path}: {name} has shape {list(tensor.shape)}; {type(module).__name__} expects {list(own.shape)}."
            )
    try:
        module.load_state_dict(dict(state))
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path}: parameters do not fit {type(module).__name__}: {error}") from error


def model_from_parameters(
    file: Candidate,
    options: SourceOptions,
    state: Mapping[str, Tensor],
    *,
    format: str,
    built: tuple[Module, Any] | None = None,
    gates: Sequence[GateGroup] | None = None,
    notes: Sequence[str] = (),
) -> GatedModel:
    """A gated model from parameters into which masks and gates are already multiplied.

    Args:
        state: the parameters by the names of the bare module.
        built: the module and its example inputs or None, where the format knows the architecture; else the user's
            factory (`options.model`) builds it.
        gates: what the masks and gates leave; None counts the gates of `l0runtime.gates` in the module.
    Raises:
        OptionError: the architecture is not known and no factory is given, or it is known and one is given.
        ModelFileError: the parameters do not fit it.
    """
    if built is None:
        if options.model is None:
            raise OptionError(
                f"{file.path}: holds parameters alone. Say which model they belong to: "
                "model=package.module:factory, or --model on the command line."
            )
        built = build_module(options.model)
    module, inputs = built
    load_parameters(module, state, file.path)
    found = list(notes)
    if options.example_inputs is not None:
        inputs = options.example_inputs
    elif inputs is None:
        # before the search, which would run on them and say no more than that no input works
        check_tensors(dict(module.named_parameters()), dict(module.named_buffers()))
        inputs, note = find_example_inputs(module.eval())
        found.append(note)
    gated = from_module(module, inputs, format=format, notes=found)
    return gated if gates is None else replace(gated, gates=tuple(gates))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
