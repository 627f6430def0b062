"""How wide should each layer be on the device that will run it?

`auto` looks every layer's time up in a table that is measured once (l0runtime.measurement.layer_times) and chooses
for each group of coupled axes among a few widths, at least its survivors: first all groups alike (as they are, or
rounded up to one multiple, since a blocked kernel pays only if the layer's neighbours are blocked too), then group by
group while the sum of the layers' times falls. The prediction only proposes: alignment.py measures the model itself.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from converters.compaction import Coupling, Layer

if TYPE_CHECKING:
    import onnx_ir as ir

    from converters.compaction.axes import Axis
    from l0runtime.measurement.layer_times import LayerKind, LayerTimes

# what kernels work in: 4 and 8 floats in a register, 16 in a wide one, 32 in a tile of a tensor core
_MULTIPLES = (4, 8, 16, 32)
_SWEEPS = 3
_TELLS_NOTHING = 0.01
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "pads", "strides")


class Multiple:
    """Widths rounded up to a multiple, as far as the gated model had dead channels."""

    def __init__(self, multiple: int) -> None:
        self._multiple = multiple

    def __call__(self, layers: Sequence[Layer], couplings: Sequence[Coupling]) -> list[int]:
        return [_round_up(coupling, self._multiple) for coupling in couplings]


class Replayed:
    """Widths that were chosen before, for the same model; a coupling without a choice stays as it is.

    Args:
        chosen: the axis that speaks for a coupling, as text, to its survivors.
    """

    def __init__(self, chosen: Mapping[str, int]) -> None:
        self._chosen = dict(chosen)

    def __call__(self, layers: Sequence[Layer], couplings: Sequence[Coupling]) -> list[int]:
        return [self._chosen.get(str(coupling.axis), coupling.kept) for coupling in couplings]


@dataclass
class Cheapest:
    """Widths at which the layers' measured times add up to the least.

    Args:
        times: the table of the target.
        sizes: name of a dynamic dimension to the size to measure at.

    Attributes:
        before_ms, after_ms: sum over the layers, as they are and as chosen.
        couplings: how many groups of coupled axes could be wider.
        chosen: those that should be, by the axis that speaks for them.
        unknown: layers that are not in the sum (a transposed convolution, a shape that is not known).
    """

    times: LayerTimes
    sizes: Mapping[str, int]
    before_ms: float = field(default=0.0, init=False)
    after_ms: float = field(default=0.0, init=False)
    couplings: int = field(default=0, init=False)
    chosen: dict[str, int] = field(default_factory=dict, init=False)
    unknown: int = field(default=0, init=False)

    def __call__(self, layers: Sequence[Layer], couplings: Sequence[Coupling]) -> list[int]:
        known = [(layer, kind) for layer in layers if (kind := _kind_of(layer, self.sizes)) is not None]
        model = _Model(known, couplings, self.times)
        own = [coupling.kept for coupling in couplings]
        starts = [own, [_round_up(c, c.full) for c in couplings]]
        for multiple in _MULTIPLES:
            starts += [
                [_round_up(c, multiple) for c in couplings],
                [_round_up(c, multiple * c.step) for c in couplings],  # so much in every group
            ]
        choices = [sorted(set(widths)) for widths in zip(*starts, strict=True)]
        model.prepare(starts)
        best = min(starts, key=model.total_ms)
        for _ in range(_SWEEPS):
            before = list(best)
            for index, widths in enumerate(choices):
                options = [[*best[:index], width, *best[index + 1 :]] for width in widths]
                model.prepare(options, index)
                times = [model.around_ms(option, index) for option in options]
                # the narrowest of those that are as good as the best, as far as measuring can tell
                best = next(o for o, ms in zip(options, times, strict=True) if ms <= min(times) * (1 + _TELLS_NOTHING))
            if best == before:
                break
        self.before_ms, self.after_ms = model.total_ms(own), model.total_ms(best)
        self.couplings = len(couplings)
        self.chosen = {str(c.axis): width for c, width in zip(couplings, best, strict=True) if width > c.kept}
        self.unknown = len(layers) - len(known)
        return best


class _Model:
    """Times of all layers as a function of the couplings' widths."""

    def __init__(
        self, layers: Sequence[tuple[Layer, LayerKind]], couplings: Sequence[Coupling], times: LayerTimes
    ) -> None:
        self._layers, self._couplings, self._times = layers, couplings, times
        gaining: dict[Axis, list[int]] = {}
        for number, coupling in enumerate(couplings):
            for axis in coupling.gains:
                gaining.setdefault(axis, []).append(number)
        # per layer the couplings that its inputs and its outputs follow
        self._of_layer = [
            tuple([] if axis is None else gaining.get(axis, []) for axis in (layer.inputs, layer.outputs))
            for layer, _ in layers
        ]
        self._around: list[list[int]] = [[] for _ in couplings]
        for position, sides in enumerate(self._of_layer):
            for number in {*sides[0], *sides[1]}:
                self._around[number].append(position)

    def prepare(self, options: Sequence[Sequence[int]], changed: int | None = None) -> None:
        """Have each layer's missing times measured in turns with each other, so that they compare."""
        for position in range(len(self._layers)) if changed is None else self._around[changed]:
            kind = self._layers[position][1]
            self._times.times_ms(kind, [self._widths(position, option) for option in options])

    def total_ms(self, widths: Sequence[int]) -> float:
        """All layers."""
        return sum(self._time_ms(position, widths) for position in range(len(self._layers)))

    def around_ms(self, widths: Sequence[int], changed: int) -> float:
        """The layers whose time depends on one coupling."""
        return sum(self._time_ms(position, widths) for position in self._around[changed])

    def _time_ms(self, position: int, widths: Sequence[int]) -> float:
        return self._times.times_ms(self._layers[position][1], [self._widths(position, widths)])[0]

    def _widths(self, position: int, widths: Sequence[int]) -> tuple[int, int]:
        layer = self._layers[position][0]
        found = []
        for axis, kept, numbers in zip(
            (layer.inputs, layer.outputs),
            (layer.kept_inputs, layer.kept_outputs),
            self._of_layer[position],
            strict=True,
        ):
            for number in numbers:
                assert axis is not None
                coupling = self._couplings[number]
                kept += (widths[number] - coupling.kept) // coupling.step * coupling.gains[axis]
            found.append(min(kept, axis.size) if axis is not None else kept)
        return found[0], found[1]


def _round_up(coupling: Coupling, multiple: int) -> int:
    """The next multiple that whole steps reach, or the survivors where the gated model was too narrow for one."""
    wanted = -(-coupling.kept // multiple) * multiple
    steps = -(-(wanted - coupling.kept) // coupling.step)
    reached = coupling.kept + steps * coupling.step
    return reached if reached <= coupling.full else coupling.kept


def _kind_of(layer: Layer, sizes: Mapping[str, int]) -> LayerKind | None:
    """The layer apart from its widths; None where it cannot be measured alone."""
    from l0runtime.measurement.layer_times import LayerKind

    node, x = layer.node, layer.node.inputs[0]
    assert x is not None
    if x.shape is None or x.dtype is None or x.dtype.name not in ("FLOAT", "FLOAT16", "DOUBLE"):
        return None
    dims = [_size_of(dim, sizes) for dim in x.shape]
    dtype = str(x.dtype.numpy())
    if node.op_type in ("Gemm", "MatMul"):
        summed = None if layer.inputs is None else layer.inputs.dim
        rows = 1
        for dim, size in enumerate(dims):
            if dim != (len(dims) - 1 if summed is None else summed):
                if size is None:
                    return None
                rows *= size
        return LayerKind(node.op_type, rows, dtype=dtype)
    known = [size for size in (dims[0], *dims[2:]) if size is not None]
    if node.op_type != "Conv" or len(known) != len(dims) - 1:
        return None
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = tuple(int(size) for size in weight.shape[2:] if isinstance(size, int))
    groups = 0 if layer.is_depthwise else layer.groups
    if groups > 1 and (layer.kept_inputs % groups or layer.kept_outputs % groups):
        return None
    return LayerKind("Conv", known[0], tuple(known[1:]), kernel, _conv_attributes(node), groups, dtype)


def _conv_attributes(node: ir.Node) -> tuple[tuple[str, int | str | tuple[int, ...]], ...]:
    found: list[tuple[str, int | str | tuple[int, ...]]] = []
    for name in _CONV_ATTRIBUTES:
        attribute = node.attributes.get(name)
        if attribute is not None:
            found.append((name, attribute.as_string() if name == "auto_pad" else tuple(attribute.as_ints())))
    return tuple(found)


def _size_of(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int | None:
    """A dimension at the sizes to measure at; None where it is no arithmetic of known sizes."""
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value in sizes:
        return sizes[dim.value]
    try:
        value = _evaluate(ast.parse(dim.value, mode="eval").body, sizes)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError):
        return None
    return int(value) if value.denominator == 1 else None


def _evaluate(node: ast.AST, sizes: Mapping[str, int]) -> Fraction:
    """The value of an expression such as floor(H/2 - 1/2) + 1; never Python's eval, as it comes from a file.

    Raises:
        KeyError: a name or an operation that is not known.
    """
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    if isinstance(node, ast.Name):
        return Fraction(sizes[node.id])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate(node.operand, sizes)
    if isinstance(node, ast.BinOp):
        return Fraction(_OPERATIONS[type(node.op)](_evaluate(node.left, sizes), _evaluate(node.right, sizes)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args and not node.keywords:
        return Fraction(_FUNCTIONS[node.func.id]([_evaluate(argument, sizes) for argument in node.args]))
    raise KeyError(type(node).__name__)


_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[[Sequence[Fraction]], Fraction | int]] = {
    "floor": lambda values: math.floor(values[0]),
    "ceiling": lambda values: math.ceil(values[0]),
    "Max": max,
    "Min": min,
}
