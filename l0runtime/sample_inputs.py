"""Which random inputs exercise a model: their names, shapes, dtypes and sensible values?

Shapes come from the model's input specs; a dynamic first dimension is the batch, any other must be given.
Values: floats are standard normal, so both signs occur; bools are fair coins; integers lie in [0, bound), where the
bound is the length of the table that a Gather reads with them (a vocabulary), else 2 (a mask).
Used by `bench` and by the verification of conversions. Needs only onnx and numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l0runtime.errors import InputError, UnsupportedModelError
from l0runtime.onnx_files import read_model

if TYPE_CHECKING:
    import onnx

    ModelLike = onnx.ModelProto | str | Path

# operators that hand integer values on unchanged: a bound found behind them holds before them too
_VALUE_PRESERVING = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
_MASK_BOUND = 2


@dataclass(frozen=True)
class InputSpec:
    """One input of a model as its file declares it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]  # a number, the name of a dynamic dimension, or None for an unnamed one


def input_specs(model: ModelLike) -> tuple[InputSpec, ...]:
    """The inputs that a caller must feed: graph inputs without those that an initializer fills.

    Raises:
        UnsupportedModelError: an input is no tensor, or has no static rank or dtype.
    """
    import onnx

    graph = _proto(model).graph
    filled = {tensor.name for tensor in graph.initializer}
    specs = []
    for value in graph.input:
        if value.name in filled:
            continue
        if not value.type.HasField("tensor_type"):
            raise UnsupportedModelError(
                f"input '{value.name}': is a {value.type.WhichOneof('value')}; only tensors are supported."
            )
        tensor = value.type.tensor_type
        if not tensor.HasField("shape") or tensor.elem_type == onnx.TensorProto.UNDEFINED:
            raise UnsupportedModelError(
                f"input '{value.name}': has no declared rank or dtype. Export the model with typed inputs."
            )
        specs.append(
            InputSpec(
                value.name,
                onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type),
                tuple(
                    dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim
                ),
            )
        )
    return tuple(specs)


def resolve_shapes(
    model: ModelLike,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """A concrete shape for every input.

    Args:
        model: the model or its path.
        batch: the size of a dynamic first dimension that nothing else decides.
        shapes: input name to its whole shape.
        dims: name of a dynamic dimension to its size.
    Raises:
        InputError: an unknown name, a shape that contradicts the model, or a dynamic dimension without a size.
    """
    specs = input_specs(model)
    shapes = dict(shapes or {})
    sizes: dict[str, int] = dict(dims or {})
    names = {spec.name for spec in specs}
    symbols = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    for name in shapes:
        if name not in names:
            raise InputError(f"shape given for '{name}': the model's inputs are {_listed(names)}.")
    for name in sizes:
        if name not in symbols:
            raise InputError(
                f"size given for dimension '{name}': the model's dynamic dimensions are {_listed(symbols)}."
            )
    by_name = {spec.name: spec for spec in specs}
    for name, shape_given in shapes.items():  # whole shapes decide first: they bind the symbols of other inputs
        _bind(by_name[name], tuple(shape_given), sizes)
    for spec in specs:
        if spec.name not in shapes and spec.shape and isinstance(spec.shape[0], str):
            sizes.setdefault(spec.shape[0], batch)
    resolved: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        if spec.name in shapes:
            resolved[spec.name] = tuple(int(size) for size in shapes[spec.name])
            continue
        shape: list[int] = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                shape.append(dim)
            elif dim in sizes:
                shape.append(sizes[dim])
            elif dim is None and axis == 0:
                shape.append(batch)
            else:
                raise InputError(
                    f"input '{spec.name}': dimension {axis} ({dim or 'unnamed'}) is dynamic and has no size. "
                    f"Give {f'the size {dim}=N or the whole' if dim else 'its'} shape, such as "
                    f"{spec.name}={'x'.join(_example(d, batch) for d in spec.shape)}."
                )
        resolved[spec.name] = tuple(shape)
    return resolved


def sample_inputs(
    model: ModelLike,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    bounds: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs for one run; the same arguments give the same values.

    Args:
        model: the model or its path.
        batch, shapes, dims: see `resolve_shapes`.
        bounds: input name to the exclusive upper bound of its integers, over what the graph says.
        seed: of the generator.
    Raises:
        InputError: see `resolve_shapes`; or a bound is below 1, or given for an input that holds no integers.
        UnsupportedModelError: an input has a dtype for which no random value makes sense, such as strings.
    """
    proto = _proto(model)
    specs = input_specs(proto)
    concrete = resolve_shapes(proto, batch=batch, shapes=shapes, dims=dims)
    integers = {spec.name for spec in specs if spec.dtype.kind in "iu"}
    for name, bound in (bounds or {}).items():
        if name not in integers:
            raise InputError(f"bound given for '{name}': the model's integer inputs are {_listed(integers)}.")
        if bound < 1:
            raise InputError(f"bound given for '{name}': found {bound}, expected at least 1.")
    found = integer_bounds(proto) | dict(bounds or {})
    generator = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for spec in specs:
        shape = concrete[spec.name]
        if spec.name in integers:
            bound = min(found.get(spec.name, _MASK_BOUND), np.iinfo(spec.dtype).max)
            arrays[spec.name] = generator.integers(0, bound, shape).astype(spec.dtype)
        elif spec.dtype.kind == "b":
            arrays[spec.name] = generator.integers(0, 2, shape).astype(np.bool_)
        elif spec.dtype.kind in "fV":  # V: bfloat16 and the 8-bit floats of ml_dtypes
            arrays[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            raise UnsupportedModelError(
                f"input '{spec.name}': no random values for dtype {spec.dtype}. Give the arrays yourself."
            )
    return arrays


def integer_bounds(model: ModelLike) -> dict[str, int]:
    """Input name to the exclusive upper bound that the tables it indexes allow.

    Follows the input through casts and views to the `indices` of Gather; the bound is the table's length along the
    gathered axis, the least one if there are several. An input that indexes no table of known length is absent.
    """
    graph = _proto(model).graph
    lengths = _known_shapes(graph)
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    bounds: dict[str, int] = {}
    for value in graph.input:
        seen: set[str] = set()
        frontier = [value.name]
        while frontier:
            name = frontier.pop()
            if name in seen:
                continue
            seen.add(name)
            for node, position in readers.get(name, ()):
                if node.op_type == "Gather" and position == 1:
                    shape = lengths.get(node.input[0])
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                    length = shape[axis] if shape else None
                    if length is not None:
                        bounds[value.name] = min(length, bounds.get(value.name, length))
                elif node.op_type in _VALUE_PRESERVING and (position == 0 or node.op_type == "Concat"):
                    frontier.extend(node.output)
    return bounds


def _known_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...]]:
    """Shapes of initializers, and of values whose shape the file records; None for a dynamic dimension."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for value in graph.value_info:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            )
    for tensor in graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
    return shapes


def _bind(spec: InputSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Check a given shape against the spec and record the sizes of its dynamic dimensions."""
    known = {dim: sizes[dim] for dim in spec.shape if isinstance(dim, str) and dim in sizes}
    bound = dict(known)
    fits = len(shape) == len(spec.shape)
    for size, dim in zip(shape, spec.shape, strict=False):
        expected = bound.setdefault(dim, size) if isinstance(dim, str) else dim
        fits = fits and size >= 0 and expected in (size, None)
    if not fits:
        where = ", ".join(f"{dim} = {size}" for dim, size in known.items())
        raise InputError(
            f"shape given for '{spec.name}': found {list(shape)}, expected {describe_shape(spec.shape)}"
            f"{f' with {where}' if where else ''}."
        )
    sizes.update(bound)


def describe_shape(shape: Sequence[int | str | None]) -> str:
    """A declared shape for messages: `[N, 3, ?]`."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _example(dim: int | str | None, batch: int) -> str:
    return str(dim if isinstance(dim, int) else batch)


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def _proto(model: ModelLike) -> onnx.ModelProto:
    return read_model(model, weights=False) if isinstance(model, str | Path) else model
