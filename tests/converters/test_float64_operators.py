"""torch's float64 kernels give what onnx.reference gives, for every padding, stride, dilation and group."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
import onnx.helper
import pytest
from onnx.reference import ReferenceEvaluator

from converters.float64_operators import OPERATORS

GENERATOR = np.random.default_rng(3)


def draw(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


def cases() -> Iterator[tuple[str, dict[str, object], list[np.ndarray]]]:
    x, image = draw(2, 4, 9), draw(2, 4, 9, 8)
    yield "Conv", {"pads": [1, 2]}, [x, draw(6, 4, 3), draw(6)]
    yield "Conv", {"pads": [1, 0, 2, 3], "strides": [2, 1], "group": 2}, [image, draw(6, 2, 3, 2)]
    yield "Conv", {"dilations": [2, 1], "pads": [2, 0, 2, 0]}, [image, draw(6, 4, 3, 3), draw(6)]
    yield "Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [image, draw(6, 4, 3, 4)]
    yield "Conv", {"auto_pad": "SAME_LOWER", "strides": [1, 1]}, [image, draw(6, 4, 2, 4)]
    yield "Conv", {"auto_pad": "VALID"}, [image, draw(6, 4, 2, 4)]
    yield "Conv", {}, [draw(1, 2, 4, 5, 6), draw(3, 2, 2, 2, 2)]
    yield "ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 1, 1]}, [image, draw(4, 3, 3, 3), draw(3)]
    yield "ConvTranspose", {"output_padding": [1, 1], "strides": [2, 2]}, [image, draw(4, 3, 3, 3)]
    yield "MaxPool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}, [image]
    yield "MaxPool", {"kernel_shape": [3], "dilations": [2]}, [x]
    yield "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [image]
    yield "AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}, [image]
    yield "AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, [image]
    yield "AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [image]
    yield "AveragePool", {"kernel_shape": [2], "auto_pad": "SAME_UPPER", "strides": [2]}, [x]


@pytest.mark.parametrize(("operator", "attributes", "arrays"), list(cases()))
def test_operator_equals_the_reference(operator: str, attributes: dict[str, object], arrays: list[np.ndarray]) -> None:
    names = ["x", "w", "b"][: len(arrays)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, names, ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in names],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    feed = dict(zip(names, arrays, strict=True))
    (found,) = ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, feed)
    (expected,) = ReferenceEvaluator(model).run(None, feed)
    assert found.dtype == np.float64
    # sums of up to 36 float64 products in another order
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


# at 1/2: erf (Abramowitz & Stegun 7.1); gelu = (1 + erf(1 / (2 sqrt 2))) / 4 by math.erf, whose tanh form is
# (1 + tanh(sqrt(2 / pi) (1/2 + 0.044715 / 8))) / 4; hard swish = (1/2) (1/12 + 1/2) = 7/24
@pytest.mark.parametrize(
    ("operator", "attributes", "expected"),
    [
        ("Erf", {}, 0.5204998778130465),
        ("Gelu", {}, (1 + math.erf(0.5 / math.sqrt(2))) / 4),
        ("Gelu", {"approximate": "tanh"}, (1 + math.tanh(math.sqrt(2 / math.pi) * (0.5 + 0.044715 / 8))) / 4),
        ("HardSwish", {}, 7 / 24),
    ],
)
def test_functions_that_onnx_reference_rounds_to_float32_keep_float64(
    operator: str, attributes: dict[str, str], expected: float
) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x"], ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    (found,) = ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, {"x": np.array([0.5])})
    assert found[0] == pytest.approx(expected, rel=1e-15)
