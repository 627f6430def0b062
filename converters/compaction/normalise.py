"""Bring any graph into the form that the analysis expects, without changing what it computes.

Functions inlined, Constant nodes turned into initializers, nodes with constant inputs evaluated, shapes
inferred, shape operands written as numbers where the shape is known, and one initializer per use.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from converters.compaction.axes import array_of, is_constant
from converters.compaction.names import register_initializer
from converters.compaction.quantised_weights import dequantise_weights
from converters.compaction.recognise import recognise_layer_norms
from converters.compaction.resize_sizes import rewrite_resize_sizes
from converters.compaction.rewrite import remove_dead_nodes
from converters.compaction.shape_inference import infer_missing_shapes
from converters.compaction.shapes import complete_shapes, rewrite_shape_operands
from converters.compaction.split_views import split_before_views
from converters.compaction.strided_views import recognise_strided_views
from converters.compaction.view_chains import canonicalise_view_chains

# Evaluating these ahead of time would change what they are for: random numbers, quantised weights that
# must stay small, and views, which NumPy makes without copying.
_NOT_FOLDED = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"),
        *("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"),
        "Dropout",  # in training mode it draws
    }
)
_VIEWS = frozenset({"Transpose", "Shape", "Size"})
# An evaluated constant may not be much larger than what it is made from (ConstantOfShape, Expand, Tile), but what is
# evaluated on the way to a smaller one may be.
_LARGEST_GROWTH_BYTES = 1 << 20
_LARGEST_PASSING_BYTES = 1 << 26


def normalise(model: ir.Model, parameters: Collection[str] = ()) -> None:
    """Apply all normalisations in place.

    Args:
        parameters: initializers whose names must survive: what is computed from them stays a node, transposes apart.
    """
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    forget_placeholder_names(graph)
    infer_missing_shapes(model)
    fold_constants(graph, parameters)
    remove_identities(graph)
    contents = complete_shapes(graph)
    if any(output.shape is None for node in graph for output in node.outputs):
        infer_missing_shapes(model)  # what has been completed may be all that was missing
        contents = complete_shapes(graph)
    recognise_strided_views(graph, contents)
    split_before_views(graph)
    canonicalise_view_chains(graph)
    rewrite_shape_operands(graph, contents)
    rewrite_resize_sizes(graph, contents)
    recognise_layer_norms(graph)
    remove_dead_nodes(graph)
    clone_initializers_per_use(graph)
    dequantise_weights(graph)
    remove_dead_nodes(graph)


def forget_placeholder_names(graph: ir.Graph) -> None:
    """Take the name from dimensions called "?" or "None": a size is unknown, which does not mean that two agree."""
    for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
        dims = list(value.shape or ())
        named = [dim for dim in dims if isinstance(dim, ir.SymbolicDim) and dim.value is not None]
        if any(_is_placeholder(str(dim.value)) for dim in named):
            value.shape = ir.Shape(
                [
                    ir.SymbolicDim(None) if isinstance(dim, ir.SymbolicDim) and _is_placeholder(str(dim.value)) else dim
                    for dim in dims
                ]
            )


def _is_placeholder(name: str) -> bool:
    return not re.search(r"\w", name) or name.lower() in ("none", "unknown", "unk", "-1", "nan", "dynamic", "any")


def fold_constants(graph: ir.Graph, parameters: Collection[str] = ()) -> None:
    """Evaluate nodes whose inputs are all constants; the original type decides the arithmetic.

    Of `parameters` only views are made: their transposes, and their shapes.
    """
    passing: dict[ir.Value, _Passing] = {}
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or node.op_type in _NOT_FOLDED or _has_subgraph(node):
            continue
        if node.op_type not in _VIEWS and any(_is_view(value, parameters) for value in node.inputs):
            continue
        values = _evaluate(graph, node, passing)
        if values is None:
            continue
        for output, array in zip(node.outputs, values, strict=True):
            constant = _replace_by_constant(graph, output, array)
            if constant is not None and node.op_type == "Transpose":
                source, permutation = node.inputs[0], node.attributes.get("perm")
                assert source is not None
                constant.meta["transpose_of"] = source.name
                constant.meta["permutation"] = (
                    list(reversed(range(array.ndim))) if permutation is None else list(permutation.as_ints())
                )
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            sources = [value for value in node.inputs if value is not None]
            graph.remove(node, safe=True)
            for value in sources:
                _forget_if_unused(graph, value, parameters)


def _forget_if_unused(graph: ir.Graph, value: ir.Value, parameters: Collection[str]) -> None:
    # at once: the steps of a standardised weight would all be held besides the last one
    used = value.uses() or value.is_graph_input() or value.is_graph_output() or value.name in parameters
    if not used and value.name is not None and graph.initializers.get(value.name) is value:
        del graph.initializers[value.name]


def remove_identities(graph: ir.Graph) -> None:
    """Let the readers of y = Identity(x) read x; an output of the model keeps its name.

    Where y is an output and x an output, an input or an initializer, both names are needed and the node stays.
    (The pass of onnx-ir renames x in the first of these cases, so that one output is lost.)
    """
    for node in list(graph):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            continue
        x, y = node.inputs[0], node.outputs[0]
        if x is None:
            continue
        if y.is_graph_output() and (x.is_graph_output() or x.is_graph_input() or x.is_initializer()):
            continue
        x.type = y.type if x.type is None else x.type
        x.shape = y.shape if x.shape is None else x.shape
        name = y.name if y.is_graph_output() else x.name
        if y.is_graph_output():
            y.name = f"{name}_identity"
        y.replace_all_uses_with(x, replace_graph_outputs=True)
        x.name = name
        graph.remove(node, safe=True)


def _is_view(value: ir.Value | None, parameters: Collection[str]) -> bool:
    return value is not None and (value.name in parameters or value.meta.get("transpose_of") in parameters)


def _has_subgraph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


class _Passing(NamedTuple):
    """An array that is too large to be written out; made_from: bytes of the constants behind it."""

    array: NDArray[np.generic]
    made_from: int


def _evaluate(graph: ir.Graph, node: ir.Node, passing: dict[ir.Value, _Passing]) -> list[NDArray[np.generic]] | None:
    """The node's outputs as arrays, None if it must stay; those that are too large go to `passing`."""
    if node.op_type in ("Shape", "Size"):
        return _evaluate_shape(node)
    if not node.inputs or not all(value is None or value in passing or is_constant(value) for value in node.inputs):
        return None
    arrays = [passing[value].array if value in passing else array_of(value) for value in node.inputs]
    if node.op_type == "Transpose" and node.inputs[0] not in passing:
        source = arrays[0]
        assert source is not None
        permutation = node.attributes.get("perm")
        return [np.transpose(source, None if permutation is None else list(permutation.as_ints()))]
    given = [array for array in arrays if array is not None]
    if any("float" in array.dtype.name and array.dtype.kind == "V" for array in given):
        return None  # types that NumPy does not own are not evaluated
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            [ir.to_proto(node)],
            "one_node",
            [
                onnx.helper.make_tensor_value_info(value.name or "", int(value.dtype or 0), None)
                for value in dict.fromkeys(v for v in node.inputs if v is not None)
            ],
            [onnx.helper.make_tensor_value_info(output.name or "", 0, None) for output in node.outputs],
        ),
        opset_imports=[onnx.helper.make_opsetid("", graph.opset_imports.get("", 18))],
    )
    feeds = {str(v.name): a for v, a in zip(node.inputs, arrays, strict=True) if v is not None}
    try:
        with np.errstate(all="ignore"):
            results = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    except Exception:
        # the reference implementation does not cover every operator and type; the node then simply stays
        return None
    arrays_out = [np.asarray(result) for result in results]
    sizes = [
        passing[value].made_from if value in passing else array.nbytes
        for value, array in zip(node.inputs, arrays, strict=True)
        if array is not None
    ]
    size_in, size_out = sum(sizes), sum(array.nbytes for array in arrays_out)
    if size_out <= size_in + _LARGEST_GROWTH_BYTES:
        return arrays_out
    if size_out <= _LARGEST_PASSING_BYTES:
        passing.update({o: _Passing(a, size_in) for o, a in zip(node.outputs, arrays_out, strict=True)})
    return None


def _evaluate_shape(node: ir.Node) -> list[NDArray[np.generic]] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    dims = list(source.shape)
    if node.op_type == "Shape":
        start, end = node.attributes.get("start"), node.attributes.get("end")
        dims = dims[slice(start.as_int() if start else None, end.as_int() if end else None)]
    if not all(isinstance(dim, int) for dim in dims):
        return None
    numbers = np.array(dims, np.int64)
    return [numbers if node.op_type == "Shape" else np.array(numbers.prod(), np.int64)]


def _replace_by_constant(graph: ir.Graph, output: ir.Value, array: NDArray[np.generic]) -> ir.Value | None:
    if output.is_graph_output() or not output.uses():
        return None
    tensor = ir.Tensor(array, name=output.name, dtype=output.dtype if output.dtype is not None else None)
    name = f"{output.name}_constant"
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    tensor.name = name
    register_initializer(graph, constant)
    output.replace_all_uses_with(constant)
    return constant


def clone_initializers_per_use(graph: ir.Graph) -> None:
    """Give every use its own initializer (sharing the data), so that each use can be cut by itself."""
    for value in list(graph.initializers.values()):
        if value.is_graph_input():
            continue
        uses = [use for use in value.uses() if use.node.graph is graph]
        # an output of the model and what a subgraph reads stay whole, so every other use gets its own
        shared = value.is_graph_output() or len(uses) < len(value.uses())
        for number, (node, slot) in enumerate(uses[0 if shared else 1 :], start=1):
            clone = ir.Value(
                name=f"{value.name}_use{number}", shape=value.shape, type=value.type, const_value=value.const_value
            )
            clone.meta["clone_of"] = value.name
            register_initializer(graph, clone)
            node.replace_input_with(slot, clone)


def merge_equal_clones(graph: ir.Graph) -> None:
    """Undo the cloning where all uses were cut alike, so that shared weights are stored once.

    A transposed copy becomes a Transpose of the initializer that it was made from (tied embeddings), as it
    was before `fold_constants`; the runtime evaluates it once, when it loads the model.
    """
    for value in list(graph.initializers.values()):
        origin = graph.initializers.get(str(value.meta.get("clone_of")))
        if origin is not None and _hold_the_same(value, origin, None):
            value.replace_all_uses_with(origin)
            del graph.initializers[str(value.name)]
    for value in list(graph.initializers.values()):
        origin = graph.initializers.get(str(value.meta.get("transpose_of")))
        if origin is not None and _hold_the_same(value, origin, value.meta["permutation"]):
            del graph.initializers[str(value.name)]
            node = ir.node("Transpose", [origin], {"perm": value.meta["permutation"]}, name=f"{value.name}_view")
            view = node.outputs[0]
            view.name, view.shape, view.type = f"{value.name}_view", value.shape, value.type
            value.replace_all_uses_with(view)
            graph.insert_before(next(iter(graph)), node)


def _hold_the_same(value: ir.Value, origin: ir.Value, permutation: list[int] | None) -> bool:
    if value is origin or not is_constant(origin) or value.is_graph_output() or value.dtype != origin.dtype:
        return False
    mine, theirs = array_of(value), array_of(origin)
    assert mine is not None
    assert theirs is not None
    if mine is theirs and permutation is None:
        return True
    if permutation is not None:
        theirs = np.transpose(theirs, permutation)
    return mine.shape == theirs.shape and (np.shares_memory(mine, theirs) or bool(np.array_equal(mine, theirs)))
