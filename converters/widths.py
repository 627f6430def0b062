"""How wide is each layer of an ONNX model, before and after?"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

# operator: (slot of the weight, axis of its inputs, axis of its outputs); Gemm and MatMul follow below
_WEIGHTS = {"Conv": (1, 1, 0), "ConvTranspose": (1, 0, 1), "LSTM": (1, 2, 1), "GRU": (1, 2, 1), "RNN": (1, 2, 1)}


@dataclass(frozen=True)
class LayerWidth:
    """Inputs and outputs of one layer with weights.

    Args:
        layer: the module's name where the exporter recorded it in the weight's name, else the node's.
        operator: "Conv", "Gemm", ...
        inputs, outputs: widths of its weight.
        groups: 1, or the groups of a grouped convolution, whose weight holds inputs / groups per filter.
    """

    layer: str
    operator: str
    inputs: int
    outputs: int
    groups: int = 1


@dataclass(frozen=True)
class WidthChange:
    """One layer before and after; `after` is None where the whole layer went."""

    before: LayerWidth
    after: LayerWidth | None


def layer_widths(model: ir.Model) -> tuple[LayerWidth, ...]:
    """The layers with weights, in graph order."""
    return tuple(width for node in model.graph.all_nodes() if (width := _width_of(node)) is not None)


def compare_widths(gated: ir.Model, compact: ir.Model) -> tuple[WidthChange, ...]:
    """Pair the layers of two models: a node that stays keeps its name, one that replaces it takes over its output."""
    by_name = {node.name: node for node in compact.graph.all_nodes() if node.name}
    by_output = {output.name: node for node in compact.graph.all_nodes() for output in node.outputs}
    changes = []
    for node in gated.graph.all_nodes():
        before = _width_of(node)
        if before is None:
            continue
        partner = by_name.get(node.name or "") or by_output.get(node.outputs[0].name)
        changes.append(WidthChange(before, None if partner is None else _width_of(partner)))
    return tuple(changes)


def zero_channels(model: ir.Model) -> tuple[tuple[LayerWidth, int, int], ...]:
    """For each layer the number of inputs and of outputs whose weights are all exactly zero."""
    found = []
    for node in model.graph.all_nodes():
        axes, width = _weight_axes(node), _width_of(node)
        if axes is None or width is None or axes[0].const_value is None:
            continue
        weight, inputs, outputs = axes[0].const_value.numpy(), axes[1], axes[2]
        is_zero = [~weight.any(axis=_all_but(axis, weight.ndim)) for axis in (inputs, outputs)]
        found.append((width, int(is_zero[0].sum()), int(is_zero[1].sum())))
    return tuple(found)


def _all_but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(other for other in range(rank) if other != axis % rank)


def _width_of(node: ir.Node) -> LayerWidth | None:
    found = _weight_axes(node)
    if found is None:
        return None
    weight, inputs, outputs = found
    sizes = [size for size in weight.shape or () if isinstance(size, int)]
    if len(sizes) != len(weight.shape or ()):
        return None
    group = node.attributes.get("group")
    groups = group.as_int() if group is not None else 1
    # the weight of a grouped convolution holds the channels of one group on one of its axes
    factor_in, factor_out = (groups, 1) if node.op_type == "Conv" else (1, groups)
    name = _layer_name(node, weight)
    return LayerWidth(name, node.op_type, sizes[inputs] * factor_in, sizes[outputs] * factor_out, groups)


def _weight_axes(node: ir.Node) -> tuple[ir.Value, int, int] | None:
    """The weight of a layer and its input and output axes, None for an operator without weights."""
    if node.domain not in ("", "ai.onnx"):
        return None
    slot, inputs, outputs = _WEIGHTS.get(node.op_type, (1, 0, 1))
    if node.op_type not in (*_WEIGHTS, "Gemm", "MatMul") or len(node.inputs) <= slot:
        return None
    weight = node.inputs[slot]
    if weight is None or not _is_constant(weight):
        weight = node.inputs[0] if node.op_type == "MatMul" else None  # x as the second factor: W x
        if weight is None or not _is_constant(weight):
            return None
        inputs, outputs = 1, 0
    if weight.shape is None or len(weight.shape) < 2:
        return None
    if node.op_type == "Gemm":
        transposed = node.attributes.get("transB")
        if transposed is not None and transposed.as_int():
            inputs, outputs = 1, 0
    if node.op_type == "MatMul":
        inputs, outputs = inputs - 2, outputs - 2  # leading axes are a batch
    return weight, inputs, outputs


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.producer() is None


def _layer_name(node: ir.Node, weight: ir.Value) -> str:
    name = weight.name or ""
    stem, dot, _ = name.rpartition(".weight")
    return stem if dot and stem else (node.name or name)
