"""In which precision does a model compute, when the caller passes and gets float32 all the same?

`load(..., precision=...)` rewrites the model before onnxruntime sees it; nothing is converted unless it is asked for:

| stored weights | precision None | "float32" | "float16" | "bfloat16" |
|---|---|---|---|---|
| float32 | as stored | as stored | converted to float16, float32 in and out | refused |
| float16 | as stored: float16 in and out | refused | casts around it: float32 in and out | refused |
| bfloat16 | as stored: bfloat16 in and out | refused | refused | casts around it: float32 in and out |

Refused is what nobody should do at load time: float32 to bfloat16 loses 16 of 24 bits and is the trainer's decision,
and half precision does not become single by being stored wider.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.onnx_files import read_model

if TYPE_CHECKING:
    import onnx

Precision = Literal["float32", "float16", "bfloat16"]
_NAMES = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "DOUBLE": "float64"}
_LARGEST_FLOAT16 = 65504.0
_SMALLEST_FLOAT16 = 5.96e-8
# onnxruntime takes a model from memory as one protobuf message
_LARGEST_BYTES = 1_900_000_000


def check_precision(precision: str | None) -> None:
    """Refuse an unknown name.

    Raises:
        OptionError: names those that are known.
    """
    if precision is not None and precision not in get_args(Precision):
        raise OptionError(f"precision '{precision}': expected {', '.join(get_args(Precision))}, or None as stored.")


def with_precision(model: str | Path | bytes, precision: str, source: str) -> str | Path | bytes:
    """The model so that it computes in this precision and takes and gives float32.

    Args:
        model: file or bytes.
        precision: see the table above.
        source: the model's name for messages.
    Raises:
        UnsupportedModelError: its weights do not allow it, or it is too large to be rewritten in memory.
    """
    import onnx

    proto = onnx.load_from_string(model) if isinstance(model, bytes) else read_model(model, weights=False)
    stored = _stored_precision(proto, source)
    if stored == precision == "float32":
        return model
    if stored != precision and (stored, precision) != ("float32", "float16"):
        raise UnsupportedModelError(
            f"{source}: holds {stored} weights and cannot run in {precision}. Load it as stored (precision=None), or "
            f"convert the trained model to {precision} before it is exported."
        )
    if not isinstance(model, bytes):
        proto = read_model(model)
    _check_size(proto, source)
    if stored == "float32":
        proto = _to_float16(proto, source)
    else:
        _float32_in_and_out(proto, stored)
    return proto.SerializeToString()  # type: ignore[no-any-return]


def _stored_precision(proto: onnx.ModelProto, source: str) -> str:
    from l0runtime.measurement.cost import weight_types

    types = sorted(_NAMES.get(name, name.lower()) for name in weight_types(proto))
    if len(types) != 1:
        found = " and ".join(types) or "no"
        raise UnsupportedModelError(
            f"{source}: holds {found} weights; a precision can only be chosen for a model of one floating-point type. "
            "Load it as stored (precision=None)."
        )
    return types[0]


def _check_size(proto: onnx.ModelProto, source: str) -> None:
    size = proto.ByteSize()
    if size > _LARGEST_BYTES:
        raise UnsupportedModelError(
            f"{source}: {size / 1e9:.1f} GB are too much to be rewritten in memory (protobuf ends at 2 GB). "
            "Convert the trained model before it is exported, and load it as stored (precision=None)."
        )


def _to_float16(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """Weights rounded to float16, casts at inputs and outputs."""
    import numpy as np
    from onnx import numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for tensor in proto.graph.initializer:
        if tensor.data_type != tensor.FLOAT:
            continue
        array = np.abs(numpy_helper.to_array(tensor))
        largest = float(array[np.isfinite(array)].max(initial=0.0))
        if largest > _LARGEST_FLOAT16:
            raise UnsupportedModelError(
                f"{source}: weight '{tensor.name}' holds {largest:.6g}, float16 ends at {_LARGEST_FLOAT16:.0f}. "
                "Run the model in float32."
            )
        # the converter would raise tiny weights to the smallest number; rounding takes those to zero
        if math.prod(array.shape) and bool(((array > 0) & (array < _SMALLEST_FLOAT16)).any()):
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    if proto.functions:
        from onnx import inliner

        proto = inliner.inline_local_functions(proto)
    converted: onnx.ModelProto = convert_float_to_float16(
        proto, keep_io_types=True, disable_shape_infer=False, op_block_list=None
    )
    return converted


def _float32_in_and_out(proto: onnx.ModelProto, stored: str) -> None:
    """Casts in front of every input and behind every output of the stored type, which become float32; in place."""
    import onnx

    kinds = onnx.TensorProto
    inner = {"float16": kinds.FLOAT16, "bfloat16": kinds.BFLOAT16}[stored]
    graph = proto.graph
    filled = {tensor.name for tensor in graph.initializer}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | filled
    casts_in, casts_out = [], []
    for value in graph.input:
        if value.name in filled or value.type.tensor_type.elem_type != inner:
            continue
        inside = _free_name(f"{value.name}_{stored}", taken)
        _rename(graph, value.name, inside, reads=True)
        casts_in.append(onnx.helper.make_node("Cast", [value.name], [inside], to=inner))
        value.type.tensor_type.elem_type = kinds.FLOAT
    produced = {name for node in graph.node for name in node.output}
    for value in graph.output:
        if value.type.tensor_type.elem_type != inner:
            continue
        if value.name not in produced:
            raise UnsupportedModelError(
                f"output '{value.name}': is an input or a weight passed through, around which no cast can be put. "
                "Load the model as stored (precision=None)."
            )
        inside = _free_name(f"{value.name}_{stored}", taken)
        _rename(graph, value.name, inside, reads=False)
        casts_out.append(onnx.helper.make_node("Cast", [inside], [value.name], to=kinds.FLOAT))
        value.type.tensor_type.elem_type = kinds.FLOAT
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts_in, *body, *casts_out])


def _free_name(wanted: str, taken: set[str]) -> str:
    name = wanted
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _rename(graph: onnx.GraphProto, old: str, new: str, *, reads: bool) -> None:
    """Let nodes (and bodies inside them) read, or write and read, another name."""
    for node in graph.node:
        for names in (node.input,) if reads else (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = new
        for attribute in node.attribute:
            for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                if old not in _defined(body):
                    _rename(body, old, new, reads=True)
    if not reads:
        for value in graph.value_info:
            if value.name == old:
                value.name = new


def _defined(graph: onnx.GraphProto) -> set[str]:
    own: Any = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    return {*own, *(name for node in graph.node for name in node.output)}
