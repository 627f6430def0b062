"""What size has the output of a convolution or a pooling, also where height and width are symbols?

    out = floor((in + pads - dilation * (kernel - 1) - 1) / stride) + 1

A symbol that keeps its size keeps its name; any other result is named after the formula, so that two branches
that shrink alike get equal names.
"""

from __future__ import annotations

import onnx_ir as ir

from converters.compaction.dimensions import Dim

SPATIAL = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"})
_ANONYMOUS = ir.SymbolicDim(None)


def spatial_shape(node: ir.Node, x: list[Dim], weight: list[Dim] | None) -> list[Dim] | None:
    """Shape [N, C, *space'] of the output, given the shapes of x: [N, C, *space] and of a Conv's weight."""
    channels = x[1] if weight is None else weight[0]
    space = len(x) - 2
    if node.op_type.startswith("Global"):
        return [x[0], channels, *[1] * space]
    kernel = _ints(node, "kernel_shape") or ([d for d in weight[2:] if isinstance(d, int)] if weight else [])
    if len(kernel) != space:
        return None
    strides, dilations = _ints(node, "strides") or [1] * space, _ints(node, "dilations") or [1] * space
    pads = _ints(node, "pads") or [0] * (2 * space)
    attribute = node.attributes.get("auto_pad")
    auto = "NOTSET" if attribute is None else attribute.as_string()
    ceil = node.attributes.get("ceil_mode")
    if ceil is not None and ceil.as_int():
        return [x[0], channels, *[_ANONYMOUS] * space]
    sizes: list[Dim] = []
    for d in range(space):
        if auto.startswith("SAME"):
            # out = ceil(in / stride) = floor((in - 1) / stride) + 1
            sizes.append(_shrunk(x[2 + d], -1, strides[d]))
        else:
            padding = 0 if auto == "VALID" else pads[d] + pads[d + space]
            sizes.append(_shrunk(x[2 + d], padding - dilations[d] * (kernel[d] - 1) - 1, strides[d]))
    return [x[0], channels, *sizes]


def _shrunk(size: Dim, added: int, stride: int) -> Dim:
    """floor((size + added) / stride) + 1."""
    if isinstance(size, int):
        return (size + added) // stride + 1
    if size.value is None:
        return _ANONYMOUS
    if stride == 1:
        return size if added == -1 else ir.SymbolicDim(f"({size.value}{added + 1:+d})")
    return ir.SymbolicDim(f"(({size.value}{added:+d})//{stride}+1)")


def _ints(node: ir.Node, name: str) -> list[int] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None else list(attribute.as_ints())
