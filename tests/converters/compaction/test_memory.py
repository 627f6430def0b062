"""Does compaction copy only what it changes?"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from rule_case import build

from converters.compaction import compact

R = np.random.default_rng(9)


def test_initializers_that_nothing_is_cut_from_are_not_copied() -> None:
    gate = np.ones(8)
    gate[[1, 4]] = 0
    proto = build(
        """(double[N,6] x) => (double[N,3] y) {
            a = MatMul(x, w1)
            b = Relu(a)
            c = MatMul(b, w2)
            d = Mul(c, gate)
            e = MatMul(d, w3)
            t = Transpose<perm=[1,0]>(w3)
            f = MatMul(e, t)
            g = MatMul(f, w4)
            y = MatMul(g, w5)
        }""",
        w1=R.normal(size=(6, 7)), w2=R.normal(size=(7, 8)), gate=gate, w3=R.normal(size=(8, 4)),
        w4=R.normal(size=(8, 5)), w5=R.normal(size=(5, 3)),
    )  # fmt: skip
    model = ir.from_proto(proto)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    after = compact(model).model.graph.initializers
    assert {name: list(value.shape) for name, value in after.items() if name in ("w2", "w3")} == {
        "w2": [7, 6],
        "w3": [6, 4],
    }
    for name in ("w1", "w4", "w5"):
        assert after[name].const_value is before[name], f"{name} was copied"
