"""How are nodes written that have names, types and shapes from the start?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.compaction.names import register_initializer


class Names:
    """Names that no value of a model has yet, in whatever graph."""

    def __init__(self, model: ir.Model) -> None:
        self._taken = {
            str(value.name)
            for graph in [model.graph, *model.graph.subgraphs()]
            for value in [*graph.inputs, *graph.initializers.values(), *_outputs_in(graph)]
        }

    def new(self, wanted: str) -> str:
        """The name itself, or with a number behind it."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def _outputs_in(graph: ir.Graph) -> list[ir.Value]:
    return [output for node in graph for output in node.outputs]


class NodeList:
    """Nodes in the order they are added, and the constants that they read.

    Args:
        names: of the whole model.
        prefix: of all names made here.
    """

    def __init__(self, names: Names, prefix: str) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self._names, self._prefix = names, prefix

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        label: str,
        dtype: ir.DataType | None,
        shape: Sequence[int | str | None] | None,
        **attributes: Any,
    ) -> ir.Value:
        """Add a node and return its only output, called `prefix.label`."""
        node = ir.node(op_type, inputs, attributes, name=self._names.new(f"{self._prefix}.{label}.{op_type}"))
        output = node.outputs[0]
        output.name = self._names.new(f"{self._prefix}.{label}")
        output.type = None if dtype is None else ir.TensorType(dtype)
        output.shape = None if shape is None else ir.Shape(list(shape))
        self.nodes.append(node)
        return output

    def like(self, op_type: str, inputs: Sequence[ir.Value | None], label: str, value: ir.Value) -> ir.Value:
        """Add a node whose output has the type and shape of `value`."""
        output = self.add(op_type, inputs, label, value.dtype, None)
        output.shape = value.shape
        return output

    def constant(self, array: Any, label: str) -> ir.Value:
        """Add an initializer."""
        array = np.asarray(array)
        name = self._names.new(f"{self._prefix}.{label}")
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers.append(value)
        return value

    def zero(self, dtype: ir.DataType, label: str) -> ir.Value:
        """A scalar zero of a type."""
        return self.constant(np.zeros((), dtype.numpy()), label)

    def as_graph(self, outputs: Sequence[ir.Value], label: str, weights: Sequence[ir.Value] = ()) -> ir.Graph:
        """A branch without inputs."""
        return ir.Graph(
            [],
            list(outputs),
            nodes=self.nodes,
            initializers=[*weights, *self.initializers],
            name=f"{self._prefix}.{label}",
        )

    def insert_before(self, node: ir.Node, graph: ir.Graph) -> None:
        """Put the nodes in front of a node of the graph, the constants among its initializers."""
        for value in self.initializers:
            register_initializer(graph, value)
        graph.insert_before(node, self.nodes)
