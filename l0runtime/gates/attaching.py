"""How does a user put gates into a model, fix them, and take them out again?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from l0runtime.errors import GateParameterError, InputError, NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates.attached import AttachedGates, connect, disconnect, gates_in
from l0runtime.gates.cost import CostModel
from l0runtime.gates.couplings import find_couplings
from l0runtime.gates.gate_spec import GateSpec
from l0runtime.gates.layers import GateSide
from l0runtime.gates.places import KINDS, Found, Place, Point, PointRole, find_places
from l0runtime.gates.tracing import trace

Spec = GateSpec | Mapping[str, GateSide] | Literal["auto"]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATEABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def attach(
    model: nn.Module,
    spec: Spec = "auto",
    example_inputs: Sequence[Any] | Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    options: GateSpec | None = None,
) -> AttachedGates:
    """Put gates into any torch model, in place; its code stays untouched.

    In training mode the gates are random, in eval mode a fixed function of their parameters, so that torch.export
    traces constants and `converters.convert` removes what is closed.

    Args:
        model: the root module; the gates become its child `l0_gates`, and a sample is drawn whenever it is called.
        spec: "auto" gates every place of every kind that a trace of the model finds, coupled layers sharing one gate;
            a GateSpec chooses among them; a mapping from layer patterns to "input" or "output" gates exactly those
            linear and convolutional layers, each by itself, without a trace ({"features.*": "output"}).
        example_inputs: positional inputs to trace with, batch first; one tensor stands for itself in a tuple. The
            batch must have at least 2 examples, so that its axis is no constant.
        example_kwargs: keyword inputs.
        options: drop rate, constants, rule and kind of samples for "auto" and for a mapping.
    Returns:
        The gates, also found by `gates_in(model)`.
    Raises:
        InputError: a trace is needed, and there are no example inputs.
        UnsupportedModelError: torch.export cannot trace the model, or it has gates already.
        NoGateError: nothing in the model fits the spec; the message says why the nearest places were refused.
        OptionError: a pattern fits no layer.
    """
    if gates_in(model) is not None:
        raise UnsupportedModelError(f"{type(model).__name__}: has gates already; call detach first.")
    options = options or GateSpec()
    if isinstance(spec, Mapping):
        gates = AttachedGates(_named_places(model, spec), options, {}, {})
    else:
        if spec == "auto":
            chosen = _with_kinds(options)
        elif isinstance(spec, GateSpec):
            chosen = spec
        else:
            raise OptionError(f"attach: spec is {spec!r}; expected 'auto', a GateSpec, or a mapping of layer patterns.")
        gates = _chosen_gates(model, chosen, find(model, example_inputs, example_kwargs))
    connect(model, gates)
    return gates


def find(
    model: nn.Module, example_inputs: Sequence[Any] | Tensor | None, example_kwargs: Mapping[str, Any] | None = None
) -> Found:
    """Every place where gates can stand, and what the model costs; see `attach` for arguments and errors."""
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs or ())
    if not args and not example_kwargs:
        raise InputError(
            f"attach: no example inputs. Give one tensor per positional input of {type(model).__name__}.forward, batch "
            "first, or name the layers by pattern ({'layer*.conv1': 'output'})."
        )
    recorded = trace(model, args, example_kwargs)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return find_places(recorded, find_couplings(recorded), sizes)


def detach(model: nn.Module, *, fold: bool = True) -> None:
    """Take the gates out; the parameters have their own names again, in their own order.

    A parameter that several modules share, and that gates scale in one of them (GPT-2's embedding, which is also its
    output layer), is no longer shared once the gates are folded into it, unless all of its gates are 1.

    Args:
        fold: multiply the parameters by the final gate values, so that the model in eval mode computes the same as
            before; False leaves the parameters as they were trained.
    Raises:
        NoGateError: the model has no attached gates.
    """
    disconnect(model, _gates_of(model), fold)


@torch.no_grad()
def freeze(model: nn.Module, *, binary: bool = False) -> None:
    """Fix the gates at their final values, for fine-tuning: nothing is random any more, and closed units stay closed.

    Args:
        binary: set all open gates to 1, so that only which units are kept remains of them.
    Raises:
        NoGateError: the model has no attached gates.
    """
    for gate in _gates_of(model):
        values = gate.values()
        gate.freeze((values != 0).to(values.dtype) if binary else values)


def thaw(model: nn.Module) -> None:
    """Undo `freeze`: the gates are random while training again, with the log_alpha that they had."""
    for gate in _gates_of(model):
        gate.thaw()


def _gates_of(model: nn.Module) -> AttachedGates:
    gates = gates_in(model)
    if gates is None:
        raise NoGateError(f"{type(model).__name__}: has no attached gates; call attach first.")
    return gates


def _with_kinds(options: GateSpec) -> GateSpec:
    return replace(options, kinds=KINDS)


def _chosen_gates(model: nn.Module, spec: GateSpec, found: Found) -> AttachedGates:
    unused = spec.unused_patterns(found.places)
    if unused and found.places:
        names = ", ".join(place.name for place in found.places[:8])
        raise OptionError(f"attach: the pattern {unused[0]!r} fits no place of the model; it has {names}.")
    chosen = [position for position, place in enumerate(found.places) if spec.wants(place)]
    if not chosen:
        reasons = "; ".join(
            f"{name or type(model).__name__}: {reason}" for name, reason in list(found.refused.items())[:3]
        )
        raise NoGateError(
            f"{type(model).__name__}: no place for gates of the kinds {', '.join(spec.kinds)} fits the spec"
            f"{f' ({reasons})' if reasons else ''}."
        )
    costs: dict[str, CostModel] = {"macs": found.macs.select(chosen), "parameters": found.parameters.select(chosen)}
    return AttachedGates([found.places[position] for position in chosen], spec, costs, found.refused)


def _named_places(model: nn.Module, sides: Mapping[str, GateSide]) -> list[Place]:
    places: dict[str, Place] = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _GATEABLE) or _is_gpt2(layer)}
    for pattern, side in sides.items():
        if side not in ("input", "output"):
            raise GateParameterError(f"attach: side of {pattern!r} is {side!r}; expected 'input' or 'output'.")
        fitting = [name for name in layers if fnmatchcase(name, pattern)]
        if not fitting:
            known = ", ".join(list(layers)[:8])
            raise OptionError(f"attach: the pattern {pattern!r} fits no linear or convolutional layer; known: {known}.")
        for name in fitting:
            key = name if side == "output" else f"{name}.input"
            places[key] = _named_place(key, name, layers[name], side)
    return list(places.values())


def _is_gpt2(layer: nn.Module) -> bool:
    """transformers' Conv1D, GPT-2's linear layer with a weight [in, out]."""
    return type_before_parametrizations(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _named_place(key: str, name: str, layer: nn.Module, side: GateSide) -> Place:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    groups = int(getattr(layer, "groups", 1))
    is_flipped = isinstance(layer, _TRANSPOSED) or _is_gpt2(layer)  # weight: [in, out / groups, *kernel]
    axis = int(is_flipped) if side == "output" else int(not is_flipped)
    if axis == 1 and groups != 1:
        what = "outputs" if side == "output" else "inputs"
        other = "inputs or the layer behind" if side == "output" else "outputs or the layer before"
        raise UnsupportedModelError(
            f"{name}: the {what} of a grouped convolution (groups={groups}) share no column of its weight; "
            f"gate its {other}."
        )
    tensors = {"weight": axis}
    owned = weight.numel()
    if side == "output" and isinstance(bias, Tensor):
        tensors["bias"] = 0
        owned += bias.numel()
    role: PointRole = "out" if side == "output" else "in"
    points = tuple(
        Point(f"{name}.{tensor}" if name else tensor, place, None, role) for tensor, place in tensors.items()
    )
    size = weight.shape[axis]
    return Place(key, "units", size, points, (name,), owned / size, points)
