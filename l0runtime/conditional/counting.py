"""How does a session tell which blocks its requests ran, although the model's outputs stay what they are?

The file has the outputs of the model that it was made from, and no others. Loading it with `count_blocks=True` adds the
decision of each gate as an output, in memory; the session takes them off again and counts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l0runtime.conditional.executions import Executions, count_decisions, no_executions
from l0runtime.conditional.metadata import ConditionalModel, conditional_blocks
from l0runtime.conditional.unrolled import recount, without_weights
from l0runtime.errors import UnsupportedModelError
from l0runtime.onnx_files import read_model
from l0runtime.session.bound import BoundRun
from l0runtime.session.core import Session

if TYPE_CHECKING:
    import onnx


def with_decisions(path: str | Path | bytes) -> bytes:
    """A conditional model with the decision of each block among its outputs, behind its own.

    Weights in files beside it stay there; load it with their folder set.

    Raises:
        UnsupportedModelError: the model has no conditional blocks.
        ModelFileError: the file is missing, truncated or of another format.
    """
    import onnx

    proto, model = _read(path)
    known = {value.name: value for value in proto.graph.value_info}
    for block in model.blocks:
        value = known.get(block.decision)
        if value is None:
            value = onnx.helper.make_tensor_value_info(block.decision, onnx.TensorProto.FLOAT, [None])
        proto.graph.output.append(value)
    return bytes(proto.SerializeToString())


def work_of(path: str | Path | bytes) -> Work:
    """The blocks of a model as the converter wrote it, before its precision was changed.

    Raises: as `with_decisions`.
    """
    return Work(*_read(path))


def _read(path: str | Path | bytes) -> tuple[onnx.ModelProto, ConditionalModel]:
    import onnx

    proto = onnx.load_from_string(path) if isinstance(path, bytes) else read_model(path, weights=False)
    source = "model" if isinstance(path, bytes) else str(path)
    model = conditional_blocks(proto, source)
    if model is None:
        raise UnsupportedModelError(
            f"{source}: has no conditional blocks to count. Load it without count_blocks, or convert a model with "
            "input-dependent gates."
        )
    return proto, model


class Work:
    """The blocks of a model, with the work that they are at any shapes of its inputs.

    Args:
        proto: the model; its weights are dropped from it.
        model: its blocks.
    """

    def __init__(self, proto: onnx.ModelProto, model: ConditionalModel) -> None:
        self.model = model
        shapes = [value.type.tensor_type.shape.dim for value in proto.graph.input]
        varies = any(not dim.HasField("dim_value") for dims in shapes for dim in list(dims)[1:])
        self._proto = without_weights(proto) if varies else None
        self._known: dict[tuple[tuple[str, tuple[int, ...]], ...], ConditionalModel] = {}

    def at(self, inputs: Mapping[str, Any]) -> ConditionalModel:
        """The blocks at the shapes of a run's inputs; the same ones where only the batch may vary."""
        if self._proto is None:
            return self.model
        sizes = tuple((name, (1, *(int(size) for size in value.shape[1:]))) for name, value in inputs.items())
        if sizes not in self._known:
            self._known[sizes] = recount(self._proto, self.model, dict(sizes))
        return self._known[sizes]


class CountingSession(Session):
    """A session that counts which blocks its runs execute; made by `load(..., count_blocks=True)`.

    Runs, and batches that a MicroBatcher makes of requests, are counted from any thread.
    """

    def __init__(self, session: Session, work: Work) -> None:
        """Takes over a session whose last outputs are the decisions of the blocks."""
        model = work.model
        self.__dict__.update(session.__dict__)
        self._fits = None  # the shortest way of `run` would pass the counter by
        self._work, self._model = work, model
        self.outputs = self.outputs[: -len(model.blocks)]
        self._names = [spec.name for spec in self.outputs]
        self._known_names = frozenset(self._names)
        self._decisions = [block.decision for block in model.blocks]
        self._total = no_executions(model)
        self._counting = threading.Lock()
        self._own = threading.local()

    @property
    def executions(self) -> Executions:
        """What all runs since the loading, or the last `reset_executions`, have executed."""
        return self._total

    def reset_executions(self) -> Executions:
        """Begin to count anew; returns what was counted."""
        with self._counting:
            found, self._total = self._total, no_executions(self._model)
        return found

    def run_counted(
        self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
    ) -> tuple[dict[str, Any], Executions]:
        """`run`, and what this request executed."""
        self._own.executions = no_executions(self._model)
        try:
            results = self.run(inputs, outputs)
            found: Executions = self._own.executions
        finally:
            del self._own.executions
        return results, found

    def bind(self, inputs: Mapping[str, Any]) -> BoundRun:
        """Raises UnsupportedModelError: a bound run writes its outputs past the counter."""
        raise UnsupportedModelError(f"{self._source}: bound runs are not counted. Load it without count_blocks.")

    def _run_arrays(self, feed: dict[str, Any], names: list[str]) -> list[Any]:
        results = super()._run_arrays(feed, [*names, *self._decisions])
        return self._count(feed, results, len(names))

    def _run_on_gpu(self, inputs: Mapping[str, Any], names: list[str]) -> list[Any]:
        results = super()._run_on_gpu(inputs, [*names, *self._decisions])
        return self._count(inputs, results, len(names))

    def _count(self, inputs: Mapping[str, Any], results: list[Any], own: int) -> list[Any]:
        made = count_decisions(self._model, [_as_array(value) for value in results[own:]], self._work.at(inputs))
        with self._counting:
            self._total = self._total + made
        if hasattr(self._own, "executions"):
            self._own.executions = self._own.executions + made
        return results[:own]


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    """A decision, wherever it was left."""
    if hasattr(value, "cpu"):  # a torch tensor
        value = value.cpu()
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
