"""What is one case of the operator table: a small gated graph, its inputs, and what must at least go?

A case is a function from a random generator to a model, registered by `case`. Its expectation is one of

    params=N          at most N floating-point weights stay (scalars not counted), worked out by hand
    nothing="reason"  nothing may be removed, for this reason
    equality="reason" only the function is judged; how much goes is a matter of cost or of coverage

Equality is demanded of every case, whatever its expectation.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, numpy_helper

Build = Callable[[np.random.Generator], onnx.ModelProto]

# Two sizes for every symbolic dimension, so that nothing can be tuned to one of them.
DEFAULT_SIZES: Mapping[str, tuple[int, int]] = {
    "N": (1, 3), "H": (6, 9), "W": (7, 8), "L": (9, 12), "S": (4, 6), "T": (3, 5), "P": (2, 3)
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One graph of the table.

    Args:
        name: unique, a phrase.
        family: file of the table it stands in.
        build: makes the model; the generator is seeded from the name.
        params: most floating-point weights that may stay; None where removal is not judged by number.
        nothing: why nothing may be removed.
        equality: why only equality is judged.
        sizes: values tried for symbolic dimensions, beside DEFAULT_SIZES.
        integers: half-open range per integer input.
        constant_output: the outputs do not depend on the inputs, on purpose.
        no_onnxruntime: why onnxruntime on CPU cannot run it.
        no_double: why the float64 twin is not a valid model for the engine.
        tolerance: limit in float32, relative to the output's scale; the default is rounding of sums of <= 1000 terms.
        positive: inputs are positive (a logarithm or a root reads them).
    """

    name: str
    family: str
    build: Build
    params: int | None = None
    nothing: str | None = None
    equality: str | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    integers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    constant_output: bool = False
    no_onnxruntime: str | None = None
    no_double: str | None = None
    tolerance: float = 1e-5
    positive: bool = False

    def model(self) -> onnx.ModelProto:
        """The model, the same at every call."""
        return self.build(np.random.default_rng(zlib.crc32(self.name.encode())))

    def inputs(self, model: onnx.ModelProto, which: int, draw: int = 0) -> dict[str, np.ndarray]:
        """Random signed inputs; `which` (0 or 1) chooses the sizes of the symbolic dimensions, `draw` the numbers."""
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), which, draw])
        sizes = {**DEFAULT_SIZES, **self.sizes}
        # An old file also lists its initializers as inputs; they keep their default.
        initialized = {tensor.name for tensor in model.graph.initializer}
        feeds = {}
        for value in model.graph.input:
            if value.name in initialized:
                continue
            tensor = value.type.tensor_type
            shape = [d.dim_value if d.HasField("dim_value") else sizes[d.dim_param][which] for d in tensor.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            if value.name in self.integers:
                feeds[value.name] = rng.integers(*self.integers[value.name], size=shape).astype(dtype)
            elif tensor.elem_type == TensorProto.BOOL:
                feeds[value.name] = np.asarray(rng.random(shape) < 0.5)
            else:
                numbers = rng.normal(size=shape) * (1.5 - which)
                feeds[value.name] = np.asarray(np.abs(numbers) + 0.1 if self.positive else numbers).astype(dtype)
        return feeds


CASES: dict[str, Case] = {}


def add(name: str, family: str, build: Build, **options: Any) -> None:
    """Enter one case; its name must be new and exactly one expectation given."""
    chosen = Case(name=name, family=family.rsplit(".", 1)[-1], build=build, **options)
    if name in CASES:
        raise ValueError(f"two cases are called {name}")
    if sum(e is not None for e in (chosen.params, chosen.nothing, chosen.equality)) != 1:
        raise ValueError(f"{name}: give one of params, nothing, equality")
    CASES[name] = chosen


def case(**options: Any) -> Callable[[Build], Build]:
    """Register a builder under its own function name."""

    def register(build: Build) -> Build:
        add(build.__name__, build.__module__, build, **options)
        return build

    return register


def model(text: str, opset: int = 20, ir: int = 10, domains: str = "", **weights: Any) -> onnx.ModelProto:
    """A model from ONNX text; `text` is `(inputs) => (outputs) { nodes }`, the weights are its initializers.

    A float array or list becomes float32 unless its dtype says otherwise, an int list becomes int64.
    """
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{domains}]>\ncase '
    proto = onnx.parser.parse_model(header + text)
    for name, value in weights.items():
        proto.graph.initializer.append(tensor(value, name))
    return proto


def tensor(value: Any, name: str) -> onnx.TensorProto:
    """TensorProto of a Python or NumPy value (lists: float32, int64 or bool)."""
    if isinstance(value, onnx.TensorProto):
        value.name = name
        return value
    array = np.asarray(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        array = array.astype({"f": np.float32, "i": np.int64, "b": np.bool_}[array.dtype.kind])
    return numpy_helper.from_array(array, name)


def weight(r: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers, scaled so that a contraction over all but the first axis keeps its input's scale."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return (r.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def vector(r: np.random.Generator, n: int) -> np.ndarray:
    """A bias or an offset, about 1 in size, with both signs."""
    return r.normal(size=n).astype(np.float32)


def gate(r: np.random.Generator, n: int, closed: Sequence[int] = (1, 4, 6)) -> np.ndarray:
    """Gate values: exactly zero at `closed`, between 0.3 and 1 elsewhere."""
    z = r.uniform(0.3, 1.0, size=n).astype(np.float32)
    z[list(closed)] = 0.0
    return z


def channels(z: np.ndarray) -> np.ndarray:
    """A vector over channels, shaped [C, 1, 1] to broadcast over [N, C, H, W]."""
    return z.reshape(-1, 1, 1)


def batch_norm(
    r: np.random.Generator, n: int, prefix: str, dead: Mapping[int, float] | None = None
) -> dict[str, np.ndarray]:
    """Scale, bias, mean and variance with nothing trivial in them, under the names prefix_s, _b, _m, _v.

    Args:
        dead: for the channels that receive an exact zero, the constant that comes out: the bias is set accordingly.
    """
    s, b, m = r.uniform(0.5, 1.5, n) * r.choice([-1.0, 1.0], n), r.normal(size=n), r.normal(size=n)
    v = r.uniform(0.5, 2.0, n)
    for k, constant in (dead or {}).items():
        b[k] = constant + s[k] * m[k] / np.sqrt(v[k] + 1e-5)
    return {f"{prefix}_{k}": a.astype(np.float32) for k, a in (("s", s), ("b", b), ("m", m), ("v", v))}
