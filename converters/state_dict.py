"""How do bare parameters, and the factory of their architecture, become a gated model?

A safetensors file, or what torch.save made of a state dict (alone, or under the key state_dict, model_state_dict or
model), with `--model package.module:factory`. The factory is called without arguments and returns the module, or the
module and its example inputs. Every parameter must be there, fit and be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.example_inputs import find_example_inputs
from converters.live_module import from_module
from converters.sources import Candidate, GatedModel, SourceOptions, resolve_model_factory
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# where training scripts keep the state dict in what they save
_KEYS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, and of torch.compile
_SHOWN = 3


class StateDict:
    """Parameters alone; the least specific format, so it is asked last."""

    name = "state-dict"
    description = "safetensors file or torch state dict, with --model package.module:factory"

    def recognise(self, file: Candidate) -> bool:
        if file.is_safetensors:
            return bool(file.header)
        return _find_state(file.torch_content) is not None

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        if options.model is None:
            raise OptionError(
                f"{file.path}: holds parameters alone. Say which model they belong to: "
                "model=package.module:factory, or --model on the command line."
            )
        if options.extra:
            raise OptionError(f"{file.path}: format {self.name} has no options; found {', '.join(options.extra)}.")
        state = _read(file)
        module, inputs = _build(options.model)
        _load(module, _without_prefixes(state), file.path)
        notes: list[str] = []
        if options.example_inputs is not None:
            inputs = options.example_inputs
        elif inputs is None:
            inputs, note = find_example_inputs(module.eval())
            notes.append(note)
        return from_module(module, inputs, format=self.name, notes=notes)


SOURCE = StateDict()


def _find_state(content: object) -> Mapping[str, Any] | None:
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


def _read(file: Candidate) -> dict[str, Tensor]:
    from converters.torch_files import tensors_of

    if not file.is_safetensors:
        state = _find_state(file.torch_content)
        if state is None:
            raise file.torch_error or ModelFileError(f"{file.path}: holds no state dict of tensors by name.")
        return tensors_of(state, file.path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file.path)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file.path}: truncated, or no safetensors file ({error}).") from error


def _build(model: Any) -> tuple[Module, Any]:
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


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = dict(state)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in renamed):
            renamed = {name.removeprefix(prefix): tensor for name, tensor in renamed.items()}
    return renamed


def _load(module: Module, state: Mapping[str, Tensor], path: Path) -> None:
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


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "none"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
