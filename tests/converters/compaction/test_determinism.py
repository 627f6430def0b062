"""Does the same model give the same bytes, whatever Python's hash seed is?"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from small_graphs import graph

_SCRIPT = """
import sys, onnx_ir as ir
from converters.compaction import compact
sys.stdout.buffer.write(ir.to_proto(compact(ir.load(sys.argv[1])).model).SerializeToString(deterministic=True))
"""


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    weights = {f"w{i}": rng.standard_normal((8, 8)) * (rng.random(8) < 0.5) for i in range(4)}
    model = graph(
        """(double[N,8] x) => (double[N,8] y) {
            a = MatMul(x, w0)  b = MatMul(x, w1)  c = MatMul(x, w2)
            s = Sigmoid(a)  t = Add(s, b)  u = Concat<axis=1>(t, c)  v = Add(u, offset)  y0 = Slice(v, one, nine, one)
            y = MatMul(y0, w3)
        }""",
        **weights,
        offset=np.ones(16),
        one=np.array([1]),
        nine=np.array([9]),
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    digests = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(path)], env=environment, capture_output=True, check=True
        )
        assert len(done.stdout) > 100
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(digests) == 1
