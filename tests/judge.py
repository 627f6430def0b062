"""Does a compaction keep every promise on one case of the table? Each check returns what is wrong, or None.

The function judged is a parameter, so the same checks are shown to fail on broken compactions (test_judge.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from cases import Case
from onnx import numpy_helper
from oracle import evaluate, relative_difference, upcast

Compact = Callable[[onnx_ir.Model], Any]

# In float64 a removal re-orders sums of at most a few hundred terms: about 1e-14. 1e-10 leaves room for variances
# that cancel, and is far below any change of the function.
FLOAT64_LIMIT = 1e-10
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}


def count_weights(model: onnx.ModelProto) -> int:
    """Floating-point numbers in initializers and Constant nodes, tensors of one element not counted."""
    return sum(int(np.prod(t.dims)) for t in _tensors(model.graph) if t.data_type in FLOATS and np.prod(t.dims) > 1)


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    found = list(graph.initializer)
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("g"):
                found += _tensors(a.g)
            elif node.op_type == "Constant" and a.HasField("t"):
                found.append(a.t)
            elif node.op_type == "Constant" and a.floats:
                found.append(numpy_helper.from_array(np.asarray(a.floats, np.float32)))
    return found


class Judgement:
    """One case under one compaction; the expensive parts are made once.

    Args:
        case: the case of the table.
        compact: takes an onnx_ir.Model and returns an object with `.model` and `.plan`.
    """

    def __init__(self, case: Case, compact: Compact) -> None:
        self.case, self.compact = case, compact

    @cached_property
    def original(self) -> onnx.ModelProto:
        return self.case.model()

    def run(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Any]:
        """(compact model, its plan); the argument is copied, since `compact` consumes it."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        result = self.compact(onnx_ir.from_proto(copy))
        return onnx_ir.to_proto(result.model), result.plan

    @cached_property
    def compacted(self) -> tuple[onnx.ModelProto, Any]:
        return self.run(self.original)

    def valid(self) -> str | None:
        """The result passes onnx.checker with shape inference, and has the same inputs and outputs."""
        model, _ = self.compacted
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # the checker raises several unrelated types
            return f"onnx.checker: {error}"
        for kind in ("input", "output"):
            before = [v.SerializeToString(deterministic=True) for v in getattr(self.original.graph, kind)]
            after = [v.SerializeToString(deterministic=True) for v in getattr(model.graph, kind)]
            if before != after:
                return f"the {kind}s changed from {getattr(self.original.graph, kind)} to {getattr(model.graph, kind)}"
        return None

    def exact(self) -> str | None:
        """The compaction of the float64 twin computes the twin's function."""
        if self.case.no_double:
            return None
        twin = upcast(self.original)
        return self.compare(twin, self.run(twin)[0], FLOAT64_LIMIT, "of the float64 twin")

    def rounded(self) -> str | None:
        """The compact model, evaluated in float64, differs by no more than its weights' own rounding."""
        return self.compare(self.original, self.compacted[0], self.case.tolerance, "in float64")

    def compare(self, before: onnx.ModelProto, after: onnx.ModelProto, limit: float, how: str) -> str | None:
        for which, draw in ((0, 0), (1, 0), (1, 1)):
            feeds = self.case.inputs(before, which, draw)
            difference = relative_difference(evaluate(before, feeds), evaluate(after, feeds))
            if not difference <= limit:
                return f"{how}: outputs differ by {difference:.3g} of their scale, allowed is {limit:.3g}"
        return None

    def runs(self) -> str | None:
        """onnxruntime computes the same from both, in the model's own precision."""
        if self.case.no_onnxruntime:
            return None
        for which in (0, 1):
            feeds = self.case.inputs(self.original, which)
            expected = run_onnxruntime(self.original, feeds)
            try:
                found = run_onnxruntime(self.compacted[0], feeds)
            except Exception as error:  # onnxruntime raises several unrelated types
                return f"onnxruntime refuses the compact model: {error}"
            difference = relative_difference(expected, found)
            if not difference <= self.case.tolerance:
                return f"in onnxruntime: outputs differ by {difference:.3g}, allowed is {self.case.tolerance:.3g}"
        return None

    def deterministic(self) -> str | None:
        """The same model gives the same bytes."""
        again, _ = self.run(self.original)
        if again.SerializeToString(deterministic=True) != self.compacted[0].SerializeToString(deterministic=True):
            return "a second compaction of the same model gave other bytes"
        return None

    def idempotent(self) -> str | None:
        """Compacting the result again keeps the function."""
        return self.compare(self.compacted[0], self.again, self.case.tolerance, "after a second compaction")

    @cached_property
    def again(self) -> onnx.ModelProto:
        """The compact model, compacted once more."""
        return self.run(self.compacted[0])[0]

    def removed(self) -> str | None:
        """As much went as the case says, counted by hand, and a second compaction finds nothing more."""
        model, plan = self.compacted
        before, after = count_weights(self.original), count_weights(model)
        if self.case.params is not None and after > self.case.params:
            return f"{after} weights stay of {before}, at most {self.case.params} may"
        if self.case.nothing is not None and (plan.removed or after > before):
            return f"{list(plan.removed)} removed ({after} weights of {before}), although {self.case.nothing}"
        if count_weights(self.again) < after:
            return f"a second compaction went from {after} to {count_weights(self.again)} weights"
        return None


CHECKS = ("valid", "exact", "rounded", "runs", "deterministic", "idempotent", "removed")


def run_onnxruntime(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs on CPU with one thread and without graph optimisation, so that the graph itself is what runs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)
