"""Which sizes of a Resize are computed at run time although they are known, or are dimensions of the model's inputs?

Exporters that know no `axes` spell `interpolate(x, size)` as a Resize to Concat(Shape(x)[0:2], ...). The first two
entries only say that batch and channels stay, but they read the shape of an axis that is to be cut. Each entry that
is a number, or a dimension of an input, is written as a part of its own; the others stay as they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import is_constant, static_size
from converters.compaction.dimensions import Dim
from converters.compaction.shapes import add_constant, entries_of, read_dimension, symbols_of_inputs

Contents = dict[ir.Value, list[Dim]]


@dataclass(frozen=True)
class Part:
    """One operand of the Concat that makes the sizes: which entries it holds."""

    value: ir.Value
    start: int
    length: int


def parts_of(sizes: ir.Value | None) -> list[Part] | None:
    """The operands of the Concat that makes a vector, None if it is made otherwise or a length is not known."""
    producer = None if sizes is None else sizes.producer()
    if producer is None or producer.op_type != "Concat" or producer.domain not in ("", "ai.onnx"):
        return None
    parts: list[Part] = []
    start = 0
    for value in producer.inputs:
        length = None if value is None else static_size(value, 0)
        if value is None or length is None:
            return None
        parts.append(Part(value, start, length))
        start += length
    return parts


def rewrite_resize_sizes(graph: ir.Graph, contents: Contents) -> None:
    """Write what is known of computed sizes as numbers and as dimensions of the model's inputs."""
    sources = symbols_of_inputs(graph)
    for node in list(graph):
        if node.op_type != "Resize" or node.domain not in ("", "ai.onnx") or len(node.inputs) < 4:
            continue
        sizes = node.inputs[3]
        if sizes is None or is_constant(sizes):
            continue
        whole = static_size(sizes, 0)
        parts = parts_of(sizes) or ([Part(sizes, 0, whole)] if whole is not None else [])
        new: list[ir.Value] = []
        changed = False
        for part in parts:
            entries = entries_of(part.value, contents)
            known = entries is not None and len(entries) == part.length
            if (
                entries is None
                or not known
                or is_constant(part.value)
                or not all(_is_known(e, sources) for e in entries)
            ):
                new.append(part.value)
                continue
            changed = True
            new += [_entry(graph, entry, sources) for entry in entries]
        if not changed:
            continue
        concat = ir.node("Concat", new, {"axis": 0}, name=f"{node.outputs[0].name}_sizes")
        result = concat.outputs[0]
        result.name, result.shape, result.type = concat.name, sizes.shape, ir.TensorType(ir.DataType.INT64)
        graph.insert_before(node, concat)
        node.replace_input_with(3, result)


def _is_known(entry: Dim, sources: dict[str, tuple[ir.Value, int]]) -> bool:
    return isinstance(entry, int) or entry.value in sources


def _entry(graph: ir.Graph, entry: Dim, sources: dict[str, tuple[ir.Value, int]]) -> ir.Value:
    if isinstance(entry, int):
        return add_constant(graph, "dimension", np.array([entry], np.int64))
    assert entry.value is not None
    nodes, value = read_dimension(graph, *sources[entry.value], f"dimension_{entry.value}")
    graph.insert_before(next(iter(graph)), nodes)
    return value
