"""What does the Open Inference Protocol call a dtype?"""

from __future__ import annotations

from collections.abc import Sequence

from l0runtime.errors import UnsupportedModelError
from l0runtime.session.specs import TensorSpec

# NumPy's name (and bfloat16) to the protocol's. Strings (BYTES) are left out: no gated network takes or gives them.
DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}


def protocol_shape(spec: TensorSpec) -> list[int]:
    """The shape as the protocol writes it, -1 for every dynamic dimension."""
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape]


def check_datatypes(source: str, specs: Sequence[TensorSpec]) -> None:
    """Refuse a model with a tensor that the protocol's binary form cannot carry here.

    Raises:
        UnsupportedModelError: names the tensor.
    """
    for spec in specs:
        if spec.dtype not in DATATYPES:
            raise UnsupportedModelError(
                f"{source}: '{spec.name}' holds {'strings' if spec.dtype == 'object' else spec.dtype}; only tensors of "
                f"numbers and booleans are served. Move that part of the model into the client."
            )
