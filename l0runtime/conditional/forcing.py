"""How does a model run when somebody else decides which blocks run for which samples?

Gates become inputs of the model, one number per sample. With that, every path can be checked and timed, whatever the
gates would say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from l0runtime.conditional.metadata import ConditionalBlock, ConditionalModel
from l0runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnx

PREFIX = "forced:"


def forced_inputs(model: ConditionalModel) -> dict[str, str]:
    """The input that each gate is read from: input name by gate value; blocks may share a gate."""
    return {block.gate: f"{PREFIX}{block.gate}" for block in model.blocks}


def force_gates(proto: onnx.ModelProto, model: ConditionalModel) -> onnx.ModelProto:
    """A copy in which each gate is an input: float32 [batch], beside the model's own.

    Args:
        proto: the conditional model, or the masked one that it was made from.
        model: its blocks.
    Raises:
        UnsupportedModelError: a gate is not in the model.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    batch = copy.graph.input[0].type.tensor_type.shape.dim[0]
    for number, (gate, name) in enumerate(forced_inputs(model).items()):
        graph, position = _find(copy.graph, gate)
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])
        value.type.tensor_type.shape.dim[0].CopyFrom(batch)
        copy.graph.input.append(value)
        node = graph.node[position]
        slot = list(node.output).index(gate)
        node.output[slot] = f"{gate}:unread"
        block = next(block for block in model.blocks if block.gate == gate)
        nodes = [] if graph is copy.graph else _taken(model, block, name, number)
        current = nodes[-1].output[0] if nodes else name
        shape, dtype = _shape_and_type(graph, gate)
        sizes = f"{name}.shape"
        copy.graph.initializer.append(onnx.helper.make_tensor(sizes, onnx.TensorProto.INT64, [len(shape)], shape))
        nodes += [
            onnx.helper.make_node("Reshape", [current, sizes], [f"{name}.placed"]),
            onnx.helper.make_node("Cast", [f"{name}.placed"], [gate], to=dtype),
        ]
        for offset, made in enumerate(nodes):
            graph.node.insert(position + 1 + offset, made)
    return copy


def _taken(model: ConditionalModel, block: ConditionalBlock, name: str, number: int) -> list[onnx.NodeProto]:
    """In a branch, the rows of those samples that have got there."""
    import onnx

    chain: list[ConditionalBlock] = []
    parent = block.parent
    while parent is not None:
        chain.insert(0, model.blocks[parent])
        parent = model.blocks[parent].parent
    nodes: list[onnx.NodeProto] = []
    for depth, above in enumerate(ancestor for ancestor in chain if ancestor.chosen):
        made = f"{name}.taken{depth}"
        nodes.append(onnx.helper.make_node("Gather", [name, above.chosen], [made], axis=0))
        name = made
    return nodes


def _find(graph: onnx.GraphProto, gate: str) -> tuple[onnx.GraphProto, int]:
    for inner in _graphs(graph):
        for position, node in enumerate(inner.node):
            if gate in node.output:
                return inner, position
    raise UnsupportedModelError(f"gate '{gate}': no node of the model computes it. Convert the model again.")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _shape_and_type(graph: onnx.GraphProto, name: str) -> tuple[list[int], int]:
    """[-1, 1, ..., 1] in the gate's rank, and its element type, which the converter writes into the file."""
    for value in [*graph.value_info, *graph.output]:
        if value.name == name:
            tensor = value.type.tensor_type
            rank = len(tensor.shape.dim)
            return [-1, *[1] * (rank - 1)] if rank else [], tensor.elem_type
    raise UnsupportedModelError(f"gate '{name}': the file does not say its shape. Convert the model again.")
