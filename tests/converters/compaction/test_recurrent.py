"""Do LSTM, GRU and RNN lose input features, with the constants among them folded into their bias?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import LIMIT, compacted, difference, graph, shapes

RNG = np.random.default_rng(7)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(kind: str) -> onnx.ModelProto:
    rows = GATES[kind] * 3
    return graph(
        f"""(double[S,N,4] x) => (double[S,1,N,3] y) {{
            h = MatMul(x, w0)  g = Mul(h, z)  s = Sigmoid(g)  y = {kind}<hidden_size=3>(s, w, r, b)
        }}""",
        w0=RNG.standard_normal((4, 6)),
        z=np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]),
        w=RNG.standard_normal((1, rows, 6)),
        r=RNG.standard_normal((1, rows, 3)),
        b=RNG.standard_normal((1, 2 * rows)),
    )


@pytest.mark.parametrize("kind", GATES)
def test_constant_features_go_into_the_bias(kind: str) -> None:
    model = recurrent(kind)
    compact, _ = compacted(model)
    assert shapes(compact)["w"] == (1, GATES[kind] * 3, 3)
    x = RNG.standard_normal((5, 2, 4))
    assert difference(model, compact, x=x) < LIMIT
    # the recurrent half of the bias stays as it was; the wrong half would be read after a GRU's reset gate
    before = next(t for t in model.graph.initializer if t.name == "b")
    after = next(t for t in compact.graph.initializer if t.name.endswith("_compact0"))
    old, new = onnx.numpy_helper.to_array(before), onnx.numpy_helper.to_array(after)
    rows = GATES[kind] * 3
    np.testing.assert_array_equal(old[:, rows:], new[:, rows:])
    assert (old[:, :rows] != new[:, :rows]).all()
    after.CopyFrom(before if before.name == after.name else onnx.numpy_helper.from_array(old, after.name))
    assert difference(model, compact, x=x) > 1e-3
