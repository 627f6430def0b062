"""Which tensors does a session take and give, and does what a caller passes fit them?

Checked here, before onnxruntime sees anything: it accepts a wrong byte order silently (and computes garbage), does not
check that a dynamic dimension has one size across inputs, and names neither the model nor the remedy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l0runtime.errors import InputError, UnsupportedModelError
from l0runtime.sample_inputs import describe_shape

_NUMPY_NAMES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(string)": "object",
}


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name; bfloat16 comes from ml_dtypes."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a session."""

    name: str
    dtype: str  # NumPy's name of it, or "bfloat16"
    shape: tuple[int | str | None, ...]  # a number, the name of a dynamic dimension, or None for an unnamed one

    @functools.cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy dtype; bfloat16 comes from ml_dtypes."""
        return numpy_dtype(self.dtype)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} {describe_shape(self.shape)}"


def specs_of(node_args: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Specs from onnxruntime's `NodeArg`s.

    Raises:
        UnsupportedModelError: a value is no dense tensor of a dtype known here.
    """
    specs = []
    for arg in node_args:
        if arg.type not in _NUMPY_NAMES:
            raise UnsupportedModelError(
                f"'{arg.name}': has type {arg.type}; only tensors of {', '.join(sorted(_NUMPY_NAMES.values()))} are "
                "supported."
            )
        # onnxruntime gives None, or an empty name, for an unnamed dimension
        shape = tuple(dim if isinstance(dim, int) else (dim or None) for dim in arg.shape)
        specs.append(TensorSpec(arg.name, _NUMPY_NAMES[arg.type], shape))
    return tuple(specs)


class InputChecker:
    """Check the names, dtypes and shapes of a feed; built once per session because it runs on every call."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._fixed = {
            spec.name: [(axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, int)] for spec in specs
        }
        counted: dict[str, int] = {}
        for spec in specs:
            for dim in spec.shape:
                if isinstance(dim, str):
                    counted[dim] = counted.get(dim, 0) + 1
        # only a symbol that occurs twice can be contradicted
        self._symbols = {
            spec.name: [(axis, dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, str) and counted[dim] > 1]
            for spec in specs
        }

        # (name, dtype, its shape with None where any size will do); None if a symbol ties two dimensions together
        self._plain: list[tuple[str, np.dtype[Any], tuple[int | None, ...]]] | None = None
        if not any(self._symbols.values()):
            self._plain = [
                (spec.name, spec.numpy_dtype, tuple(dim if isinstance(dim, int) else None for dim in spec.shape))
                for spec in specs
            ]

    def make_quick_check(self) -> Callable[[Any], bool]:
        """A function that says whether a feed is a dict of NumPy arrays that plainly fit, so that nothing more need be
        looked at.

        The quick way through for most calls; False means only that the other checks have to decide.
        """
        plain = self._plain
        if plain is None:
            return lambda inputs: False
        if len(plain) == 1 and plain[0][2][:1] == (None,) and None not in plain[0][2][1:]:
            ((name, dtype, (_, *rest)),) = plain
            tail, array = tuple(rest), np.ndarray

            def one_fits(inputs: Any) -> bool:  # one input of which only the batch is dynamic: nearly every model
                if type(inputs) is not dict or len(inputs) != 1 or name not in inputs:
                    return False
                value = inputs[name]
                # an array has one dtype object for every plain type, so identity is enough for the quick way
                return type(value) is array and value.dtype is dtype and value.ndim > 0 and value.shape[1:] == tail

            return one_fits

        def all_fit(inputs: Any) -> bool:
            if type(inputs) is not dict or len(inputs) != len(plain):
                return False
            for name, dtype, sizes in plain:
                value = inputs.get(name)
                if type(value) is not np.ndarray or value.dtype != dtype:
                    return False
                shape = value.shape
                if len(shape) != len(sizes):
                    return False
                for size, wanted in zip(shape, sizes, strict=True):
                    if wanted is not None and size != wanted:
                        return False
            return True

        return all_fit

    def check_names(self, names: Mapping[str, object]) -> None:
        """Refuse a feed with a missing or an unknown name.

        Raises:
            InputError: names what is missing or unknown, and what the model takes.
        """
        if names.keys() == self._specs.keys():
            return
        missing = [name for name in self._specs if name not in names]
        unknown = [name for name in names if name not in self._specs]
        found = [f"input '{name}' is missing" for name in missing] + [f"'{name}' is no input" for name in unknown]
        takes = "; ".join(str(spec) for spec in self._specs.values()) or "no input"
        raise InputError(f"{', '.join(found)}. The model takes {takes}.")

    def check(self, name: str, dtype: object, shape: Sequence[int], sizes: dict[str, int]) -> None:
        """Refuse one tensor with a wrong dtype or shape.

        Args:
            name: a known input name.
            dtype: a NumPy dtype.
            shape: its shape.
            sizes: sizes of dynamic dimensions seen so far in this call; extended here.
        Raises:
            InputError: says what was found and expected.
        """
        spec = self._specs[name]
        if dtype != spec.numpy_dtype:
            raise InputError(f"input '{name}': found dtype {dtype}, expected {spec.dtype}. Convert it first.")
        fits = len(shape) == len(spec.shape)
        if fits:
            for axis, fixed in self._fixed[name]:
                if shape[axis] != fixed:
                    fits = False
        if not fits:
            raise InputError(f"input '{name}': found shape {list(shape)}, expected {describe_shape(spec.shape)}.")
        for axis, symbol in self._symbols[name]:
            if sizes.setdefault(symbol, shape[axis]) != shape[axis]:
                raise InputError(
                    f"input '{name}': found shape {list(shape)}, expected {describe_shape(spec.shape)} with "
                    f"{symbol} = {sizes[symbol]} as in the inputs before it."
                )
