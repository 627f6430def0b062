"""What do the slow operators mean, written plainly in NumPy or as one float64 call into torch?

`onnx.reference` computes these with Python loops over pixels. Each class here follows the operator's text in the ONNX
specification, and `tests/test_oracle.py` compares it with onnxruntime.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun


def explicit_pads(
    auto_pad: str | None,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[tuple[int, int]]:
    """(begin, end) of the padding per spatial axis, with auto_pad worked out."""
    rank = len(kernel)
    if auto_pad in (None, "", "NOTSET"):
        flat = list(pads) if pads else [0] * (2 * rank)
        return [(flat[i], flat[i + rank]) for i in range(rank)]
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    result = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        result.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return result


def _defaults(values: Sequence[int] | None, rank: int) -> list[int]:
    return list(values) if values else [1] * rank


class Conv(OpRun):
    """Y = B + sum over input channels of the group and kernel positions; x [N, C, ...], w [M, C / group, ...]."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):
        kernel = w.shape[2:]
        rank = len(kernel)
        strides, dilations = _defaults(strides, rank), _defaults(dilations, rank)
        padding = explicit_pads(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
        padded = torch.from_numpy(np.pad(x, [(0, 0), (0, 0), *padding]).copy())
        convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
        bias = None if b is None else torch.from_numpy(np.array(b))
        y = convolve(padded, torch.from_numpy(np.array(w)), bias, stride=strides, dilation=dilations, groups=group or 1)
        return (y.numpy(),)


class ConvTranspose(OpRun):
    """Each input pixel adds its kernel, scaled, to the output; x [N, C, ...], w [C, M / group, ...]."""

    def _run(
        self,
        x,
        w,
        b=None,
        auto_pad=None,
        dilations=None,
        group=None,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        if auto_pad not in (None, "", "NOTSET") or output_shape:
            raise NotImplementedError("ConvTranspose with auto_pad or output_shape")
        group = group or 1
        rank = w.ndim - 2
        strides, dilations = _defaults(strides, rank), _defaults(dilations, rank)
        extra = list(output_padding) if output_padding else [0] * rank
        padding = explicit_pads(None, pads, x.shape[2:], w.shape[2:], strides, dilations)
        batch, channels = x.shape[:2]
        outputs = w.shape[1] * group
        full = [
            (n - 1) * s + (k - 1) * d + 1 + e
            for n, s, k, d, e in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)
        ]
        y = np.zeros((batch, outputs, *full), x.dtype)
        grouped_x = x.reshape(batch, group, channels // group, *x.shape[2:])
        grouped_w = w.reshape(group, channels // group, w.shape[1], *w.shape[2:])
        for position in itertools.product(*(range(k) for k in w.shape[2:])):
            # [N, G, M / G, ...] = sum over c of [N, G, c, ...] * [G, c, M / G]
            part = np.einsum("ngc...,gcm->ngm...", grouped_x, grouped_w[(..., *position)])
            window = tuple(
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(position, dilations, x.shape[2:], strides, strict=True)
            )
            y[(slice(None), slice(None), *window)] += part.reshape(batch, outputs, *x.shape[2:])
        crop = tuple(slice(begin, size - end) for (begin, end), size in zip(padding, full, strict=True))
        y = y[(slice(None), slice(None), *crop)]
        return (y if b is None else y + b.reshape(1, -1, *[1] * rank),)


def _pool(
    x: np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: Sequence[tuple[int, int]],
    ceil_mode: bool,
    fill: Any,
    reduce: Callable[[Any, Any], Any],
) -> np.ndarray:
    """Combine the kernel positions of each window by `reduce`; cells outside x hold `fill`."""
    counts = []
    for size, k, s, d, (begin, end) in zip(x.shape[2:], kernel, strides, dilations, padding, strict=True):
        span = size + begin + end - ((k - 1) * d + 1)
        count = (-(-span // s) if ceil_mode else span // s) + 1
        if ceil_mode and (count - 1) * s >= size + begin:  # a window may not start in the padding at the end
            count -= 1
        counts.append(count)
    widths = [
        (begin, max(end, (n - 1) * s + (k - 1) * d + 1 - size - begin))
        for n, size, k, s, d, (begin, end) in zip(counts, x.shape[2:], kernel, strides, dilations, padding, strict=True)
    ]
    padded = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=fill)
    result = None
    for position in itertools.product(*(range(k) for k in kernel)):
        window = tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(position, dilations, counts, strides, strict=True)
        )
        part = padded[(slice(None), slice(None), *window)]
        result = part if result is None else reduce(result, part)
    return result


class MaxPool(OpRun):
    """Largest of each window; the second output is its position in x, flattened over batch, channels and pixels."""

    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        storage_order=None,
        strides=None,
    ):
        rank = len(kernel_shape)
        strides, dilations = _defaults(strides, rank), _defaults(dilations, rank)
        padding = explicit_pads(auto_pad, pads, x.shape[2:], kernel_shape, strides, dilations)
        arguments = (kernel_shape, strides, dilations, padding, bool(ceil_mode))
        largest = _pool(x, *arguments, -np.inf, np.maximum)
        if len(self.onnx_node.output) == 1:
            return (largest,)
        if storage_order:
            raise NotImplementedError("MaxPool that counts its indices in column-major order")
        # The positions are pooled in pairs with their values; the first of equal values wins.
        pairs = np.empty(x.shape, np.dtype([("value", np.float64), ("at", np.float64)]))
        pairs["value"], pairs["at"] = x, np.arange(x.size).reshape(x.shape)
        outside = np.array((-np.inf, -1), pairs.dtype)
        chosen = _pool(pairs, *arguments, outside, lambda a, b: np.where(b["value"] > a["value"], b, a))
        return largest, chosen["at"].astype(np.int64)


class AveragePool(OpRun):
    """Sum of the window over its number of cells; cells of the padding count if count_include_pad says so."""

    def _run(
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        count_include_pad=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        strides=None,
    ):
        rank = len(kernel_shape)
        strides, dilations = _defaults(strides, rank), _defaults(dilations, rank)
        padding = explicit_pads(auto_pad, pads, x.shape[2:], kernel_shape, strides, dilations)
        ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
        if count_include_pad:
            # The padding that the node asks for is data; what ceil_mode adds at the end is not.
            x = np.pad(x, [(0, 0), (0, 0), *padding])
            ones = np.pad(ones, [(0, 0), (0, 0), *padding], constant_values=1)
            size_rule = [(0, 0)] * rank
        else:
            size_rule = padding
        arguments = (kernel_shape, strides, dilations, size_rule, bool(ceil_mode), 0.0, np.add)
        return (_pool(x, *arguments) / _pool(ones, *arguments),)


class GlobalLpPool(OpRun):
    """The p-norm of each channel, (sum of |x| ** p) ** (1 / p)."""

    def _run(self, x, p=None):
        order = p or 2
        total = (np.abs(x) ** order).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
        return (total ** (1 / order),)


class BatchNormalization(OpRun):
    """Y = scale * (x - mean) / sqrt(var + epsilon) + bias, per channel, of any opset.

    In training mode mean and variance are those of the batch, and the running ones come out too.
    """

    def _run(self, x, scale, bias, mean, var, epsilon=None, momentum=None, training_mode=None, spatial=None):
        used_mean, used_var = mean, var
        if training_mode:
            along = tuple(d for d in range(x.ndim) if d != 1)
            used_mean, used_var = x.mean(axis=along), x.var(axis=along)
        s, b, m, v = (a.reshape(-1, *[1] * (x.ndim - 2)) for a in (scale, bias, used_mean, used_var))
        y = s * (x - m) / np.sqrt(v + (1e-5 if epsilon is None else epsilon)) + b
        if not training_mode or len(self.onnx_node.output) == 1:
            return (y,)
        kept = 0.9 if momentum is None else momentum
        return y, mean * kept + used_mean * (1 - kept), var * kept + used_var * (1 - kept)


class GroupNormalization(OpRun):
    """(x - mean) / sqrt(var + epsilon) per group, then scale and bias per channel (opset 21 and newer).

    The reference's function body computes its statistics in float32.
    """

    def _run(self, x, scale, bias, epsilon=None, num_groups=None, stash_type=None):
        grouped = x.reshape(x.shape[0], num_groups, -1)
        centred = grouped - grouped.mean(axis=2, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=2, keepdims=True) + (1e-5 if epsilon is None else epsilon))
        shape = (-1, *[1] * (x.ndim - 2))
        return ((centred / deviation).reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape),)


class HardSwish(OpRun):
    """Y = x * max(0, min(1, x / 6 + 1 / 2)); the reference's function body has 1 / 6 in float32."""

    def _run(self, x):
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


class LRN(OpRun):
    """Y = x / (bias + alpha / size * sum of squares over the `size` neighbouring channels) ** beta."""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):
        before, after = (size - 1) // 2, size // 2
        padded = np.pad(x**2, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = sum(padded[:, k : k + x.shape[1]] for k in range(size))
        return (x / (bias + alpha / size * total) ** beta,)


class MeanVarianceNormalization(OpRun):
    """Y = (x - mean) / (deviation + 1e-9) over `axes`; the reference's function body has float32 constants."""

    def _run(self, x, axes=None):
        along = tuple(axes) if axes else (0, 2, 3)
        mean = x.mean(axis=along, keepdims=True)
        deviation = np.sqrt((x * x).mean(axis=along, keepdims=True) - mean * mean)
        return ((x - mean) / (deviation + 1e-9),)


class Pad(OpRun):
    """np.pad, after cropping where a width is negative; pads as an input (opset 11 and newer)."""

    def _run(self, data, pads, constant_value=None, axes=None, mode=None):
        chosen = range(data.ndim) if axes is None else [int(a) % data.ndim for a in axes]
        widths, crop = [(0, 0)] * data.ndim, [slice(None)] * data.ndim
        for i, axis in enumerate(chosen):
            begin, end = int(pads[i]), int(pads[i + len(pads) // 2])
            widths[axis] = (max(begin, 0), max(end, 0))
            crop[axis] = slice(max(-begin, 0), data.shape[axis] - max(-end, 0))
        cropped = data[tuple(crop)]
        if mode in (None, "constant"):
            value = 0 if constant_value is None else np.asarray(constant_value).reshape(())
            return (np.pad(cropped, widths, constant_values=value).astype(data.dtype),)
        return (np.pad(cropped, widths, mode=mode),)


NEW_OPERATORS: list[type[OpRun]] = [
    Conv, ConvTranspose, MaxPool, AveragePool, GlobalLpPool, BatchNormalization, GroupNormalization, HardSwish, LRN,
    MeanVarianceNormalization, Pad
]  # fmt: skip
