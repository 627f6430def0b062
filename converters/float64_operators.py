"""How are the heavy operators evaluated in float64, fast enough for whole networks?

onnx.reference is exact but slow for convolutions and pools, and rounds Erf to float32. These classes replace them by
torch's float64 kernels and hand every case that torch does not have (ceil_mode, odd paddings) to onnx.reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_average_pool import AveragePool_19
from onnx.reference.ops.op_conv import Conv as ReferenceConv
from onnx.reference.ops.op_conv_transpose import ConvTranspose as ReferenceConvTranspose
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool

Array = np.ndarray[Any, Any]
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Conv(ReferenceConv):
    """X [N, C_in, *size], W [C_out, C_in / group, *kernel], B [C_out]."""

    def _run(
        self,
        X: Array,
        W: Array,
        B: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = X.ndim - 2
        steps, spread = _or_ones(strides, rank), _or_ones(dilations, rank)
        paddings = _explicit_pads(auto_pad, pads, X.shape[2:], W.shape[2:], steps, spread)
        if rank not in _CONVOLUTIONS or paddings is None or not _is_double(X, W):
            out = super()._run(X, W, B, auto_pad, dilations, group, kernel_shape, pads, strides)  # type: ignore[no-untyped-call]
            return (out[0],)
        x = F.pad(_tensor(X), _torch_order(paddings))
        bias = None if B is None else _tensor(B)
        return (_CONVOLUTIONS[rank](x, _tensor(W), bias, steps, 0, spread, group or 1).numpy(),)


class ConvTranspose(ReferenceConvTranspose):
    """X [N, C_in, *size], W [C_in, C_out / group, *kernel], B [C_out]."""

    def _run(
        self,
        X: Array,
        W: Array,
        B: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = X.ndim - 2
        paddings = list(pads) if pads is not None else [0] * (2 * rank)
        is_plain = auto_pad in (None, "NOTSET") and not output_shape and not any(output_padding or ())
        if rank not in _TRANSPOSED or not is_plain or not _is_double(X, W):
            out = super()._run(  # type: ignore[no-untyped-call]
                X, W, B, auto_pad, dilations, group, kernel_shape, output_padding, output_shape, pads, strides
            )
            return (out[0],)
        bias = None if B is None else _tensor(B)
        steps, spread = _or_ones(strides, rank), _or_ones(dilations, rank)
        y = _TRANSPOSED[rank](_tensor(X), _tensor(W), bias, steps, 0, 0, group or 1, spread)
        for axis in range(rank):  # padding of a transposed convolution is cropping of its output
            begin, end = paddings[axis], paddings[rank + axis]
            y = y.narrow(axis + 2, begin, y.shape[axis + 2] - begin - end)
        return (y.contiguous().numpy(),)


class MaxPool(ReferenceMaxPool):
    """X [N, C, *size]."""

    def _run(  # type: ignore[override]
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        storage_order: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        rank, kernel = x.ndim - 2, list(kernel_shape or ())
        steps, spread = _or_ones(strides, rank), _or_ones(dilations, rank)
        paddings = _explicit_pads(auto_pad, pads, x.shape[2:], kernel, steps, spread)
        if rank not in _MAX_POOLS or paddings is None or ceil_mode or len(self.onnx_node.output) > 1:
            out = super()._run(  # type: ignore[no-untyped-call]
                x, auto_pad, ceil_mode, dilations, kernel_shape, pads, storage_order, strides
            )
            return tuple(out)
        padded = F.pad(_tensor(x), _torch_order(paddings), value=-torch.inf)
        return (_MAX_POOLS[rank](padded, kernel, steps, 0, spread).numpy(),)


class AveragePool(AveragePool_19):
    """X [N, C, *size]; without count_include_pad a window's sum is divided by its number of real elements."""

    def _run(  # type: ignore[override]
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        count_include_pad: int | None = None,
    ) -> tuple[Array]:
        rank, kernel = x.ndim - 2, list(kernel_shape or ())
        steps, spread = _or_ones(strides, rank), _or_ones(dilations, rank)
        paddings = _explicit_pads(auto_pad, pads, x.shape[2:], kernel, steps, spread)
        if rank not in _AVERAGE_POOLS or paddings is None or ceil_mode or any(d != 1 for d in spread):
            out = super()._run(  # type: ignore[no-untyped-call]
                x, auto_pad, ceil_mode, dilations, kernel_shape, pads, strides, count_include_pad
            )
            return (out[0],)
        pool = _AVERAGE_POOLS[rank]
        mean = pool(F.pad(_tensor(x), _torch_order(paddings)), kernel, steps)
        if not count_include_pad and any(paddings):
            mean = mean / pool(F.pad(torch.ones_like(_tensor(x)), _torch_order(paddings)), kernel, steps)
        return (mean.numpy(),)


class Erf(OpRun):
    """Elementwise; onnx.reference computes it in float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.erf(_tensor(x)).numpy(),)


class Gelu(OpRun):
    """Elementwise; onnx.reference expands it with constants that are rounded to float32."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        return (F.gelu(_tensor(x), approximate=approximate or "none").numpy(),)


class HardSwish(OpRun):
    """Elementwise, x * clip(x / 6 + 1/2, 0, 1); onnx.reference takes 1/6 rounded to float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool, Erf, Gelu, HardSwish]


def _tensor(array: Array) -> torch.Tensor:
    # torch warns about arrays that it must not write to, as weights read from a file are
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C"))


def _is_double(*arrays: Array) -> bool:
    return all(array.dtype == np.float64 for array in arrays)


def _or_ones(values: Sequence[int] | None, rank: int) -> list[int]:
    return list(values) if values else [1] * rank


def _explicit_pads(
    auto_pad: str | None,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int] | None:
    """Pads [begin..., end...] as numbers; None for a mode or a negative pad that torch does not have."""
    rank = len(sizes)
    if auto_pad in (None, "", "NOTSET"):
        found = list(pads) if pads else [0] * (2 * rank)
        return found if min(found, default=0) >= 0 else None
    if auto_pad == "VALID":
        return [0] * (2 * rank)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        return None
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        needed = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        small, large = needed // 2, needed - needed // 2
        begins.append(small if auto_pad == "SAME_UPPER" else large)
        ends.append(large if auto_pad == "SAME_UPPER" else small)
    return begins + ends


def _torch_order(pads: Sequence[int]) -> list[int]:
    """ONNX writes all begins, then all ends, first axis first; torch writes (begin, end) pairs, last axis first."""
    rank = len(pads) // 2
    return [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
