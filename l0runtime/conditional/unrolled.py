"""What does a conditional model look like to a count of its work: with every block run, or with none?

The branches are put back into the main graph, where shape inference sees them. Shapes are right for a run of all
samples (or of none); values are not, so that the result is good for counting and for nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from l0runtime.conditional.metadata import ConditionalModel

_LARGEST_KEPT_BYTES = 4096  # a smaller one may be an operand that says a shape

if TYPE_CHECKING:
    import onnx

    # a node, and the position of the block that it lies in
    Placed = tuple[onnx.NodeProto, int | None]


def unroll(
    proto: onnx.ModelProto, model: ConditionalModel, *, runs: bool
) -> tuple[onnx.ModelProto, tuple[int | None, ...]]:
    """A copy without the branches of the model's blocks, for counting; and the innermost block of each of its nodes.

    Args:
        proto: the conditional model.
        model: its blocks.
        runs: keep what runs for samples that need a block, all of them; False keeps what skips it.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    branches = {block.branch: position for position, block in enumerate(model.blocks)}
    nodes = _without_branches(copy.graph, copy.graph.node, branches, runs, None)
    chosen = {block.chosen for block in model.blocks if block.chosen}
    found = {node.input[0] for node, _ in nodes if chosen & set(node.output)}
    placed: list[Placed] = []
    for node, place in nodes:
        if node.op_type == "NonZero" and node.output[0] in found:
            placed += [(made, place) for made in _everyone(copy.graph, node)]
        else:
            placed.append((node, place))
    del copy.graph.node[:]
    copy.graph.node.extend(node for node, _ in placed)
    return copy, tuple(place for _, place in placed)


def recount(proto: onnx.ModelProto, model: ConditionalModel, shapes: Mapping[str, tuple[int, ...]]) -> ConditionalModel:
    """The blocks with their work for one sample at other input shapes, such as larger images or longer sequences.

    Args:
        proto: the conditional model; weights may be missing.
        model: its blocks.
        shapes: of each input, batch first; the batch is divided out.
    """
    from l0runtime.measurement.cost import count_cost

    unrolled, places = unroll(proto, model, runs=True)
    del unrolled.metadata_props[:]  # it is no conditional model any more
    for number, node in enumerate(unrolled.graph.node):
        node.name = str(number)
    work: dict[int | None, int] = {}
    for counted in count_cost(unrolled, shapes=shapes).nodes:
        place = places[int(counted.name)]
        work[place] = work.get(place, 0) + counted.macs
    rows = next(iter(shapes.values()))[0]
    blocks = tuple(replace(block, macs=work.get(n, 0) // rows) for n, block in enumerate(model.blocks))
    return ConditionalModel(blocks, work.get(None, 0) // rows)


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, its big weights dropped: their shapes are enough for a count."""
    import onnx

    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            if tensor.ByteSize() > _LARGEST_KEPT_BYTES and not tensor.external_data:
                bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                bare.data_location = onnx.TensorProto.EXTERNAL
                bare.external_data.add(key="location", value="dropped")
                tensor.CopyFrom(bare)
    return proto


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _without_branches(
    main: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], branches: Mapping[str, int], runs: bool, place: int | None
) -> list[Placed]:
    """The nodes of a graph, each branch of a block among them replaced by its content; weights go to the main graph."""
    import onnx

    found: list[Placed] = []
    for node in nodes:
        if node.op_type != "If" or node.name not in branches:
            found.append((node, place))
            continue
        graphs = {attribute.name: attribute.g for attribute in node.attribute}
        taken, inside = graphs["then_branch" if runs else "else_branch"], branches[node.name]
        main.initializer.extend(taken.initializer)
        found += _without_branches(main, taken.node, branches, runs, inside)
        for inner, outer in zip(taken.output, node.output, strict=True):
            found.append((onnx.helper.make_node("Identity", [inner.name], [outer]), inside))
    return found


def _everyone(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """In place of the indices of those that run, [1, any]: as many as there are samples, [1, samples]."""
    import onnx

    axis, name = f"{node.output[0]}.axis", f"{node.output[0]}.everyone"
    graph.initializer.append(onnx.helper.make_tensor(axis, onnx.TensorProto.INT64, [1], [0]))
    return [
        onnx.helper.make_node("Cast", [node.input[0]], [name], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Unsqueeze", [name, axis], [node.output[0]]),
    ]
