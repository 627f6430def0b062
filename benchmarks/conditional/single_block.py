"""Networks of one masked block, written as ONNX: for timing a branch by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from converters.conditional import outline
from converters.conditional.describe import describe
from converters.output_files import save_model
from l0runtime.conditional import ConditionalModel
from l0runtime.conditional.forcing import force_gates

_HEADER = '<ir_version: 8, opset_import: ["": 20]>'


def residual(width: int, size: int, batch: str) -> onnx.ModelProto:
    """relu(x + g(x) f(x)) on [batch, width, size, size], f two 3x3 convolutions, g a linear gate on the means."""
    image = f"float[{batch},{width},{size},{size}]"
    return _model(
        f"""g ({image} x) => ({image} y) {{
            p = GlobalAveragePool(x)  l = Conv(p, gw, gb)  c = Greater(l, zero)  g = Cast<to=1>(c)
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(h)  f = Conv<pads=[1,1,1,1]>(r, w2, b2)
            m = Mul(f, g)  s = Add(x, m)  y = Relu(s)
        }}""",
        gw=(1, width, 1, 1),
        gb=(1,),
        w1=(width, width, 3, 3),
        b1=(width,),
        w2=(width, width, 3, 3),
        b2=(width,),
    )


def feed_forward(width: int, length: int, batch: str) -> onnx.ModelProto:
    """x + g(x) f(x) on [batch, length, width], f a feed-forward layer of four times the width."""
    sequence = f"float[{batch},{length},{width}]"
    return _model(
        f"""g ({sequence} x) => ({sequence} y) {{
            p = ReduceMean<keepdims=1>(x, one)  l = MatMul(p, gw)  a = Add(l, gb)  c = Greater(a, zero)
            g = Cast<to=1>(c)  n = LayerNormalization(x, scale)  h = MatMul(n, w1)  i = Add(h, b1)  r = Gelu(i)
            o = MatMul(r, w2)  f = Add(o, b2)  m = Mul(f, g)  y = Add(x, m)
        }}""",
        gw=(width, 1),
        gb=(1,),
        scale=(width,),
        w1=(width, 4 * width),
        b1=(4 * width,),
        w2=(4 * width, width),
        b2=(width,),
    )


def _model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    model = onnx.parser.parse_model(f"{_HEADER} {text}")
    arrays = {
        name: generator.standard_normal(shape) / max(np.prod(shape[1:]), 1) ** 0.5 for name, shape in shapes.items()
    }
    for name, array in arrays.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def driven(model: onnx.ModelProto, shape: tuple[int, ...], folder: Path) -> tuple[bytes, bytes, ConditionalModel]:
    """Masked and conditional, their gate an input, and the block.

    Args:
        model: one of the networks above.
        shape: of its input.
        folder: for intermediate files.
    """
    masked = folder / "masked.onnx"
    onnx.save(model, str(masked))
    outlined_model = ir.load(str(masked))
    blocks = describe(masked, outline(outlined_model), {"x": shape})
    conditional = onnx.load(str(save_model(outlined_model, folder / "conditional.onnx")))
    forced = [force_gates(proto, blocks).SerializeToString() for proto in (model, conditional)]
    return forced[0], forced[1], blocks
