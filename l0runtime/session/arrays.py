"""How do NumPy arrays, torch tensors and DLPack tensors enter and leave a session without copies?

On the CPU everything passes as NumPy views of the caller's memory; on a GPU, tensors that are already there pass
through DLPack. Three kinds of tensor need care: bfloat16 (NumPy knows it only through ml_dtypes, and onnxruntime
takes it only as an OrtValue), bool (old DLPack has no code for it) and tensors that require grad.
torch is used only if the caller has imported it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Literal

import numpy as np

from l0runtime.errors import InputError
from l0runtime.session.specs import numpy_dtype

Array = np.ndarray[Any, Any]
Kind = Literal["numpy", "torch"]
_DLPACK_CPU = 1  # kDLCPU


def is_torch(value: object) -> bool:
    """Whether it is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_on_gpu(value: object) -> bool:
    """Whether it is a tensor in GPU memory."""
    if isinstance(value, np.ndarray | np.generic):
        return False
    if is_torch(value):
        return str(value.device.type) != "cpu"  # type: ignore[attr-defined]
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and device()[0] != _DLPACK_CPU


def as_numpy(name: str, value: object) -> Array:
    """A NumPy view of a CPU tensor.

    Raises:
        InputError: it is no array, or it lives on a GPU.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    if is_on_gpu(value):
        raise InputError(f"input '{name}': lives on a GPU, the session runs on the CPU. Pass tensor.cpu().")
    if is_torch(value):
        return _torch_to_numpy(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    raise InputError(
        f"input '{name}': found {type(value).__name__}, expected a NumPy array, a torch tensor or another DLPack "
        "tensor. Convert it first."
    )


def from_numpy(array: Any, kind: Kind) -> Any:
    """An output as the caller's kind of array, sharing memory; what is no array passes unchanged."""
    if kind == "numpy" or not isinstance(array, np.ndarray) or array.dtype == object:
        return array
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch_to_numpy(tensor: Any) -> Array:
    tensor = tensor.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        import ml_dtypes
        import torch

        view: Array = tensor.contiguous().view(torch.int16).numpy()
        return view.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def to_ort_value(array: Array) -> Any:
    """An OrtValue over a CPU array's memory, bfloat16 included; it keeps the array alive."""
    import onnxruntime

    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        import onnx

        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx.TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def ort_value_view(value: Any) -> Array:
    """A NumPy view of a CPU OrtValue's memory, bfloat16 included. The OrtValue must outlive it."""
    if value.data_type() != "tensor(bfloat16)":
        view: Array = value.numpy()
        return view
    import ml_dtypes

    shape = tuple(value.shape())
    buffer = (ctypes.c_uint16 * (value.tensor_size_in_bytes() // 2)).from_address(value.data_ptr())
    viewed: Array = np.frombuffer(buffer, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(shape)
    return viewed


def gpu_to_ort_value(name: str, value: Any) -> Any:
    """An OrtValue over a GPU tensor's memory.

    DLPack's stream argument is not honoured by onnxruntime, so torch's pending work is awaited here.
    """
    import onnxruntime

    if is_torch(value):
        import torch

        value = value.detach().contiguous()
        torch.cuda.current_stream(value.device).synchronize()
        if value.dtype == torch.bool:  # onnxruntime imports bool from bytes only
            from onnxruntime.capi import onnxruntime_pybind11_state as state

            capsule = value.view(torch.uint8).__dlpack__()
            return onnxruntime.OrtValue(state.OrtValue.from_dlpack(capsule, True))
    try:
        return onnxruntime.OrtValue.from_dlpack(value)
    except (RuntimeError, BufferError, TypeError) as error:
        raise InputError(f"input '{name}': cannot be taken over through DLPack ({error}).") from error


def ort_value_to_gpu_tensor(value: Any, kind: Kind) -> Any:
    """A GPU output as a torch tensor, or as the OrtValue itself, which is a DLPack tensor."""
    if kind == "numpy":
        return value
    import torch.utils.dlpack

    tensor = torch.utils.dlpack.from_dlpack(value)
    return tensor.view(torch.bool) if value.data_type() == "tensor(bool)" else tensor


def torch_dtype_as_numpy(value: Any) -> np.dtype[Any]:
    """The NumPy dtype of a GPU tensor, for the check against the spec."""
    name = str(getattr(value.dtype, "name", value.dtype)).removeprefix("torch.")
    return numpy_dtype(name)
