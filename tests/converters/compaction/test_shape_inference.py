"""Are missing shapes found, symbols kept equal where sizes are, and declarations left alone?"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_graphs import LIMIT, compacted, difference, graph, operators

from converters.compaction.shape_inference import infer_missing_shapes
from converters.compaction.shapes import complete_shapes

RNG = np.random.default_rng(6)


def inferred(text: str, **initializers: object) -> dict[str, list[object]]:
    model = ir.from_proto(graph(text, **initializers))
    infer_missing_shapes(model)
    complete_shapes(model.graph)
    return {
        str(value.name): [d if isinstance(d, int) else d.value for d in value.shape or ()]
        for node in model.graph
        for value in node.outputs
    }


def test_convolution_that_keeps_the_size_keeps_the_symbol() -> None:
    found = inferred(
        "(double[N,3,H,W] x) => (double[N,4,H,W] y) { c = Conv<pads=[1,1,1,1]>(x, w)  y = Relu(c) }",
        w=RNG.standard_normal((4, 3, 3, 3)),
    )
    assert found["c"] == ["N", 4, "H", "W"]


def test_branches_that_shrink_alike_get_equal_symbols() -> None:
    found = inferred(
        """(double[N,3,H,W] x) => (double[N,4,A,B] y) {
            a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w3)  b = Conv<strides=[2,2]>(x, w1)  y = Add(a, b)
        }""",
        w3=RNG.standard_normal((4, 3, 3, 3)),
        w1=RNG.standard_normal((4, 3, 1, 1)),
    )
    assert found["a"] == found["b"]
    assert found["a"][2] != found["a"][3]


def test_sequences_are_not_mistaken_for_tensors() -> None:
    model = graph(
        "(double[N,3] x) => (double[N,3] y) { q = SequenceConstruct(x, x)  p = SequenceAt(q, k)  y = Relu(p) }",
        k=np.array(0),
    )
    compact, _ = compacted(model)
    assert operators(compact) == ["SequenceConstruct", "SequenceAt", "Relu"]
    assert difference(model, compact, x=RNG.standard_normal((2, 3))) < LIMIT


def test_declared_names_of_output_dimensions_survive() -> None:
    model = graph(
        "(double[N,3,H,W] x) => (double[M,4,A,B] y) { y = Conv(x, w) }",
        w=RNG.standard_normal((4, 3, 3, 3)),
    )
    compact, _ = compacted(model)
    dims = [d.dim_param or d.dim_value for d in compact.graph.output[0].type.tensor_type.shape.dim]
    assert dims == ["M", 4, "A", "B"]
