"""How do gates act inside a model whose code knows nothing of them?

Each gate vector scales parameters through torch.nn.utils.parametrize: wherever the model reads `layer.weight`, it
gets `layer.weight * z`. So nothing depends on how the parameter is used (nn.MultiheadAttention never calls its output
projection), the cost of a step does not grow with the batch, and torch.export and torch.compile trace it. One sample
per batch is drawn for all gates together when the model is called. Samples per example multiply the activations
instead, in forward hooks.

The gates themselves sit in one child of the model, `l0_gates`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from l0runtime.errors import GateParameterError, UnsupportedModelError
from l0runtime.gates.cost import CostModel
from l0runtime.gates.evaluation import closing_threshold
from l0runtime.gates.gate import Gate
from l0runtime.gates.gate_spec import GateSpec
from l0runtime.gates.places import Place, Point, module_of

CHILD: Final = "l0_gates"
_FIXED = "fixed"


class AttachedGate(Gate):
    """The gates of one place; `current` gives what this forward pass multiplies with.

    Args:
        place: where it stands.
        spec: its distribution.
    """

    def __init__(self, place: Place, spec: GateSpec) -> None:
        super().__init__(
            place.size,
            drop_rate=spec.drop_rate,
            constants=spec.constants,
            rule=spec.rule,
            per_example=spec.per_example,
        )
        self.place = place
        self.drawn: Tensor | None = None
        self.register_buffer(_FIXED, None)

    @property
    def is_frozen(self) -> bool:
        """Whether the gates have fixed values and are no longer trained."""
        return self._buffers[_FIXED] is not None

    def freeze(self, values: Tensor) -> None:
        """Fix the values, [n]; log_alpha gets no more gradients."""
        self._buffers[_FIXED] = values.detach().clone()
        self.log_alpha.requires_grad_(False)
        self.log_alpha.grad = None
        self.drawn = None

    def thaw(self) -> None:
        """Train the gates again, from the log_alpha that they had."""
        self._buffers[_FIXED] = None
        self.log_alpha.requires_grad_(True)

    def values(self) -> Tensor:
        """Final gate values in [0, 1], [n]: the fixed ones, or those of the evaluation rule."""
        fixed = self._buffers[_FIXED]
        return super().values() if fixed is None else fixed

    def probability_open(self) -> Tensor:
        """P(z != 0) of each gate, [n]; of frozen gates 0 or 1."""
        fixed = self._buffers[_FIXED]
        return super().probability_open() if fixed is None else (fixed != 0).to(fixed.dtype)

    def current(self) -> Tensor:
        """The values of this forward pass: a sample while training, [n] or [batch, n]; the final ones otherwise.

        Raises:
            GateParameterError: in training mode, before the model that was given to `attach` has been called.
        """
        if not self.training or self.is_frozen:
            return self.values()
        if self.drawn is None:
            raise GateParameterError(
                f"gate {self.place.name}: no sample has been drawn. Call the model that was given to attach, not a "
                "part of it, or switch to eval()."
            )
        return self.drawn

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "drawn": None}  # a sample belongs to one forward pass, and cannot be copied

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        stored = state_dict.get(prefix + _FIXED)
        if stored is not None and not self.is_frozen:
            self.freeze(torch.empty_like(stored, device=self.log_alpha.device))
        elif stored is None and self.is_frozen:
            self.thaw()
        super()._load_from_state_dict(state_dict, prefix, *args)


class AttachedGates(nn.Module):
    """All gates of a model, as its child `l0_gates`; made by `attach`.

    Args:
        places: where the gates stand.
        spec: their distribution.
        costs: "macs" and "parameters" as functions of the kept shares, in the order of the places; empty where the
            model was not traced.
        refused: name -> why no gates stand there.
    """

    def __init__(
        self, places: Sequence[Place], spec: GateSpec, costs: Mapping[str, CostModel], refused: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.places = tuple(places)
        self.spec = spec
        self.costs = dict(costs)
        self.refused = dict(refused)
        self.orders: dict[str, tuple[str, ...]] = {}  # layer -> the order that its parameters had before
        for place in places:
            self.add_module(_child_name(place), AttachedGate(place, spec))

    def __iter__(self) -> Iterator[AttachedGate]:
        return (gate for gate in self._modules.values() if isinstance(gate, AttachedGate))

    def __len__(self) -> int:
        return len(self.places)

    def forward(self, x: Any) -> Any:
        """The identity: an nn.Sequential calls all of its children, this one too."""
        return x

    def gate(self, name: str) -> AttachedGate:
        """The gate of the place with this name."""
        for gate in self:
            if gate.place.name == name:
                return gate
        raise KeyError(name)

    def draw(self, batch: int) -> None:
        """Draw one sample for the coming forward pass, for all gates in one go."""
        gates = [gate for gate in self if not gate.is_frozen]
        for constants in dict.fromkeys(gate.constants for gate in gates):
            chosen = [gate for gate in gates if gate.constants == constants]
            log_alpha = torch.cat([gate.log_alpha for gate in chosen]).float()
            shape = (batch, len(log_alpha)) if self.spec.per_example else (len(log_alpha),)
            z = constants.sample(log_alpha, constants.draw_noise(shape, log_alpha))
            for gate, drawn in zip(chosen, torch.split(z, [gate.size for gate in chosen], -1), strict=True):
                gate.drawn = drawn

    def shares(self) -> Tensor:
        """Expected share of open gates per gate vector, mean P(z != 0), [number of places]; differentiable."""
        gates = list(self)
        if any(gate.is_frozen for gate in gates) or len({gate.constants for gate in gates}) != 1:
            return torch.stack([gate.probability_open().float().mean() for gate in gates])
        log_alpha = torch.cat([gate.log_alpha for gate in gates]).float()
        return self._means(gates[0].constants.probability_open(log_alpha))

    @torch.no_grad()
    def kept_shares(self) -> Tensor:
        """Share of gates that the evaluation rule leaves open per gate vector, [number of places]."""
        gates = list(self)
        rules = {(gate.constants, gate.rule) for gate in gates}
        if any(gate.is_frozen for gate in gates) or len(rules) != 1 or gates[0].rule == "top-k":
            return torch.stack([(gate.values() != 0).float().mean() for gate in gates])
        log_alpha = torch.cat([gate.log_alpha for gate in gates])
        return self._means((log_alpha > closing_threshold(gates[0].constants, gates[0].rule)).float())

    def _means(self, values: Tensor) -> Tensor:
        """Mean over each gate vector of values for all gates in a row, [number of gates] -> [number of places]."""
        sizes = torch.tensor([place.size for place in self.places], device=values.device)
        owner = torch.repeat_interleave(sizes, output_size=len(values))
        return torch.zeros(len(sizes), device=values.device).index_add(0, owner, values) / sizes

    def extra_repr(self) -> str:
        return f"{len(self.places)} places, rule={self.spec.rule!r}, per_example={self.spec.per_example}"


class Scale(nn.Module):
    """A parametrisation: the parameter times all gates that act on it.

    Gates on the same axis are multiplied first, and a single gate for the whole parameter with them, so that the
    parameter itself is gone through once per axis.

    Args:
        parts: each gate vector, shared with the model's `l0_gates` (so not a child of this module), and what it scales.
    """

    def __init__(self, parts: Sequence[tuple[AttachedGate, Point]]) -> None:
        super().__init__()
        self._shared = tuple(gate for gate, _ in parts)  # in a tuple, or they would be registered as children
        self.axes = tuple(point.axis for _, point in parts)
        for number, (gate, point) in enumerate(parts):
            index = None if point.index is None else torch.tensor(point.index, device=gate.log_alpha.device)
            self.register_buffer(f"index{number}", index, persistent=False)

    def forward(self, parameter: Tensor) -> Tensor:
        factors: dict[int | None, Tensor] = {}
        for number, (gate, axis) in enumerate(zip(self._shared, self.axes, strict=True)):
            z = expand(gate.current(), self._buffers[f"index{number}"])
            factors[axis] = factors[axis] * z if axis in factors else z
        whole = factors.pop(None, None)  # [1]
        if whole is not None and not factors:
            return parameter * whole.to(parameter.dtype)
        for axis, z in factors.items():
            if whole is not None:
                z, whole = z * whole, None
            shape = [1] * parameter.dim()
            assert axis is not None
            shape[axis] = z.shape[0]
            parameter = parameter * z.view(shape).to(parameter.dtype)
        return parameter


def expand(z: Tensor, index: Tensor | None) -> Tensor:
    """Gate values [..., n] at each position of an axis; 1 where the index is -1."""
    if index is None:
        return z
    one = torch.ones_like(z[..., :1])
    return torch.cat([z, one], -1)[..., index]  # -1 picks the one


class _Draw:
    """Forward pre-hook of the model: a new sample for each call in training mode."""

    def __init__(self, gates: AttachedGates) -> None:
        self.gates = gates

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.gates.training:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
            self.gates.draw(tensors[0].shape[0] if tensors else 1)


class _ScaleActivation:
    """Forward hook of a layer: its output times the gates, one sample per example."""

    def __init__(self, gate: AttachedGate, axis: int | None, index: tuple[int, ...] | None) -> None:
        self.gate, self.axis = gate, axis
        self.index = None if index is None else torch.tensor(index, device=gate.log_alpha.device)

    def scale(self, x: Tensor) -> Tensor:
        z = expand(self.gate.current(), self.index)
        shape = [1] * x.dim()
        if z.dim() == 2:
            if z.shape[0] != x.shape[0]:
                raise GateParameterError(
                    f"gate {self.gate.place.name}: {z.shape[0]} samples for an activation of shape {list(x.shape)}; "
                    "expected the batch on axis 0. Use one sample per batch (per_example=False) here."
                )
            shape[0] = z.shape[0]
        if self.axis is not None:
            shape[self.axis] = z.shape[-1]
        return x * z.view(shape).to(x.dtype)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self.scale(output)


class _ScaleInput(_ScaleActivation):
    """Forward pre-hook of a layer: its input times the gates."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        return (self.scale(args[0]), *args[1:])


def gates_in(model: nn.Module) -> AttachedGates | None:
    """The gates that `attach` put into a model, None where there are none."""
    found = getattr(model, CHILD, None)
    return found if isinstance(found, AttachedGates) else None


def connect(model: nn.Module, gates: AttachedGates) -> None:
    """Register the gates with the model, and let them scale what their places name."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    gates.to(device).train(model.training)
    if gates.spec.per_example:
        _check_layers(model, gates)
    model.add_module(CHILD, gates)
    model.register_forward_pre_hook(_Draw(gates), with_kwargs=True)
    parts: dict[str, list[tuple[AttachedGate, Point]]] = {}
    for gate in gates:
        if gates.spec.per_example:
            _hook(model, gate)
            continue
        for point in gate.place.points:
            parts.setdefault(point.tensor, []).append((gate, point))
    for tensor, acting in parts.items():
        layer, _, name = tensor.rpartition(".")
        gates.orders.setdefault(layer, tuple(model.get_submodule(layer)._parameters))
        own_class(model.get_submodule(layer))
        parametrize.register_parametrization(model.get_submodule(layer), name, Scale(acting), unsafe=True)


def disconnect(model: nn.Module, gates: AttachedGates, fold: bool) -> None:
    """Undo `connect`; with `fold` the parameters keep the factors that the gates have in eval mode."""
    for hooks, extra in ((model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs),):
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Draw)]:
            del hooks[key]
            extra.pop(key, None)
    gates.eval()
    tied = _tied_parameters(model)
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _ScaleActivation)]:
                del hooks[key]
        if parametrize.is_parametrized(module):
            own_class(module)
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                _remove_scales(module, name, fold, tied)
    for layer, order in gates.orders.items():
        parameters = model.get_submodule(layer)._parameters
        ordered = {name: parameters[name] for name in order}
        parameters.clear()
        parameters.update(ordered)
    if gates.spec.per_example and fold:
        _fold(model, gates, tied)
    delattr(model, CHILD)


def own_class(module: nn.Module) -> None:
    """Give a parametrised module a class of its own.

    The parameter is a property of a class that torch makes for the module, and that copies of the module share: taking
    the parametrisation out of one would take the property from all.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        content = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
        module.__class__ = type(shared.__name__, shared.__bases__, content)


def _tied_parameters(model: nn.Module) -> set[int]:
    """The ids of all parameters that the model holds more than once."""
    counts = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {key for key, count in counts.items() if count > 1}


@torch.no_grad()
def _remove_scales(module: nn.Module, name: str, fold: bool, tied: set[int]) -> None:
    chain = module.get_submodule(f"parametrizations.{name}")
    assert isinstance(chain, parametrize.ParametrizationList)
    others = [step for step in chain if not isinstance(step, Scale)]
    if len(others) == len(chain):
        return
    if others:
        raise UnsupportedModelError(
            f"{name} of {type(module).__name__}: has other parametrisations beside the gates; remove them first."
        )
    value = chain().detach().clone() if fold else None
    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    if value is not None:
        _replace(module, name, value, tied)


def _replace(module: nn.Module, name: str, value: Tensor, tied: set[int]) -> None:
    """Give a parameter new values, without changing another module that shares it."""
    parameter = module.get_parameter(name)
    if id(parameter) not in tied:
        parameter.copy_(value)
    elif not torch.equal(parameter, value):
        module._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)


@torch.no_grad()
def _fold(model: nn.Module, gates: AttachedGates, tied: set[int]) -> None:
    for gate in gates:
        for point in gate.place.points:
            layer, _, name = point.tensor.rpartition(".")
            _replace(model.get_submodule(layer), name, Scale([(gate, point)])(model.get_parameter(point.tensor)), tied)


def _hook(model: nn.Module, gate: AttachedGate) -> None:
    done: set[str] = set()
    for point in gate.place.points:
        layer = model.get_submodule(module_of(point.tensor))
        if module_of(point.tensor) in done:
            continue  # its weight and its bias are one output
        done.add(module_of(point.tensor))
        axis = None if point.axis is None else _channel_axis(layer)
        if point.role == "in":
            layer.register_forward_pre_hook(_ScaleInput(gate, axis, point.index))
        else:
            layer.register_forward_hook(_ScaleActivation(gate, axis, point.index))


def _channel_axis(layer: nn.Module) -> int:
    convolutional = isinstance(layer, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm)
    return 1 if convolutional else -1


def _check_layers(model: nn.Module, gates: AttachedGates) -> None:
    """Samples per example act on what a layer is given or gives, so the layer must be one that is called."""
    known = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.Embedding)
    uncalled = {f"{name}.out_proj" for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    for place in gates.places:
        for point in place.points:
            name = module_of(point.tensor)
            layer = model.get_submodule(name)
            if name in uncalled or not isinstance(layer, known):
                raise UnsupportedModelError(
                    f"gate {place.name}: one sample per example needs a layer that is called, and {point.tensor} is "
                    f"used without one ({type(layer).__name__}). Use one sample per batch (per_example=False)."
                )


def _child_name(place: Place) -> str:
    return place.name.replace(".", "/")
