"""Which name may a new initializer, value or node have, so that nothing in the model is called the same?"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes


def register_initializer(graph: ir.Graph, value: ir.Value) -> None:
    """Add an initializer to the graph under its own name, or under that name and a number if it is taken."""
    base, number = value.name, 0
    while value.name in graph.initializers:
        number += 1
        value.name = f"{base}_{number}"
    graph.register_initializer(value)


def make_names_unique(model: ir.Model) -> None:
    """Rename what shares its name with another value or node of its kind; inputs and outputs keep theirs.

    onnxruntime refuses two nodes of one name and the file format two values of one name. Nodes without a
    name get one.
    """
    passes.NameFixPass()(model)
