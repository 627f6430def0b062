"""What does this model compute for these inputs, in float64?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from oracle.operators import NEW_OPERATORS
from oracle.upcast import upcast


def evaluate(model: Any, inputs: Mapping[str, np.ndarray], dtype: Any = np.float64) -> list[np.ndarray]:
    """Outputs of `model`, in graph order, by the reference evaluator of ONNX.

    Args:
        model: onnx.ModelProto or onnx_ir.Model; not modified.
        inputs: array per graph input; floating-point arrays are converted to `dtype`.
        dtype: float64 runs the upcast twin; float32 runs the model as it is.
    """
    if not isinstance(model, onnx.ModelProto):
        import onnx_ir

        model = onnx_ir.to_proto(model)
    wide = np.dtype(dtype) == np.float64
    evaluator = ReferenceEvaluator(upcast(model) if wide else model, new_ops=NEW_OPERATORS)
    feeds = {k: v.astype(dtype) if wide and np.issubdtype(v.dtype, np.inexact) else v for k, v in inputs.items()}
    feeds = {k: v.astype(dtype) if wide and v.dtype.name == "bfloat16" else v for k, v in feeds.items()}
    with np.errstate(all="ignore"):
        return [np.asarray(output) for output in evaluator.run(None, feeds)]
