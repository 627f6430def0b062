"""Which graph puts one operator between a gated layer and its reader?

    dense:  x [N, 6]       -> Gemm -> * gate -> MIDDLE -> Gemm -> y [N, 3]
    image:  x [N, 3, H, W] -> Conv -> * gate -> MIDDLE -> Conv -> y [N, 4, ...]

Three of eight units (1, 4, 6) are closed. MIDDLE reads `g` and writes `m`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from cases.table import channels, gate, model, vector, weight

DENSE_LIVE = 5 * 6 + 5 + 3 * 5 + 3  # both layers with 5 of 8 units, the gate folded
DENSE_ALL = 8 * 6 + 8 + 3 * 8 + 3


def dense(
    r: np.random.Generator,
    middle: str,
    width: int = 8,
    closed: tuple[int, ...] = (1, 4, 6),
    opset: int = 20,
    **weights: Any,
) -> onnx.ModelProto:
    """The dense sandwich; `width` is the number of features after the middle."""
    return model(
        f"""(float[N,6] x) => (float[N,3] y) {{
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            {middle}
            y = Gemm<transB=1>(m, w2, b2)
        }}""",
        opset=opset, w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8, closed),
        w2=weight(r, 3, width), b2=vector(r, 3), **weights,
    )  # fmt: skip


def image_params(units: int, kernel: int = 3, width: int | None = None) -> int:
    """Weights of the image sandwich when `units` of 8 channels stay (`width` of them after the middle)."""
    return units * 27 + units + 4 * (units if width is None else width) * kernel**2 + 4


def image(
    r: np.random.Generator,
    middle: str,
    width: int = 8,
    kernel: int = 3,
    pad: int = 1,
    attributes: str = "",
    size: str = "H,W",
    out: str = "HO,WO",
    closed: tuple[int, ...] = (1, 4, 6),
    opset: int = 20,
    bias: bool = True,
    **weights: Any,
) -> onnx.ModelProto:
    """The image sandwich; the reader is a Conv with this kernel, padding and further attributes."""
    extra = f", {attributes}" if attributes else ""
    if bias:
        weights["b2"] = vector(r, 4)
    return model(
        f"""(float[N,3,{size}] x) => (float[N,4,{out}] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            {middle}
            y = Conv<pads=[{pad},{pad},{pad},{pad}]{extra}>(m, w2{', b2' if bias else ''})
        }}""",
        opset=opset, w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8, closed)),
        w2=weight(r, 4, width, kernel, kernel), **weights,
    )  # fmt: skip
