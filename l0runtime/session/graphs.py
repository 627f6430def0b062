"""How does a model replay one CUDA graph for each shape, and how are stale results made impossible?

A CUDA graph is a recorded sequence of kernels at fixed addresses: replaying it saves launching them one by one. What
was recorded with one buffer reads that buffer for ever, so a careless caller gets the first result again and again
(https://github.com/microsoft/onnxruntime/issues/20050). Therefore every shape has buffers of its own, into which inputs
are copied; a lock lets one thread at a time use them; and a new graph must prove itself: replayed on the caller's
inputs after it was recorded on zeros, it must give what a run without a graph gives.

Constraints of onnxruntime: no control flow, every node on the GPU, tensors only
(https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview).
"""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np

from l0runtime.errors import DeviceError, UnsupportedModelError
from l0runtime.session.arrays import Array
from l0runtime.session.batches import Feed, same_values
from l0runtime.session.bound import BoundRun, make_run_options

# a key of onnxruntime's run options: which graph, -1 for none
NO_GRAPH = -1
# onnxruntime runs twice before it records, and once to record; one more is a replay for sure
_RUNS_UNTIL_REPLAYED = 4
# each holds buffers of its own in GPU memory
_MOST_GRAPHS = 64

Key = tuple[tuple[int, ...], ...]


class GraphRuns:
    """Runs feeds through one recorded graph for each combination of input shapes.

    Args:
        raw: the onnxruntime session, with CUDA graphs enabled.
        memory, index: where its tensors live.
    """

    def __init__(self, raw: Any, memory: str, index: int) -> None:
        self._raw, self._memory, self._index = raw, memory, index
        self._names = [output.name for output in raw.get_outputs()]
        self._bound: dict[Key, BoundRun] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    @property
    def shapes(self) -> tuple[Key, ...]:
        """The input shapes that have a graph, in the order they came."""
        return tuple(self._bound)

    def bind(self, feed: Feed) -> BoundRun:
        """Buffers with a graph of their own, for a caller who manages them himself."""
        return BoundRun(self._raw, self._memory, self._index, feed, graph=next(self._numbers))

    def run(self, feed: Feed) -> list[Array]:
        """All outputs, as new arrays; the first call with a shape records its graph.

        Raises:
            DeviceError: a graph gave stale or other values than a plain run.
            UnsupportedModelError: too many different shapes.
        """
        key = tuple(array.shape for array in feed.values())
        with self._lock:
            bound = self._bound.get(key)
            if bound is None:
                bound = self._record(feed)
                self._bound[key] = bound
            bound.update(feed)
            bound.run()
            return [np.array(bound.outputs[name]) for name in self._names]

    def run_plainly(self, feed: Feed) -> list[Array]:
        """All outputs without any graph."""
        results: list[Array] = self._raw.run(self._names, feed, make_run_options(NO_GRAPH))
        return results

    def _record(self, feed: Feed) -> BoundRun:
        if len(self._bound) >= _MOST_GRAPHS:
            raise UnsupportedModelError(
                f"{len(self._bound)} input shapes have a CUDA graph already, each with buffers in GPU memory. "
                "Load with fewer buckets, or without cuda_graphs."
            )
        bound = self.bind({name: np.zeros_like(array) for name, array in feed.items()})
        for _ in range(_RUNS_UNTIL_REPLAYED):
            bound.run()
        bound.update(feed)
        bound.run()
        replayed = bound.outputs
        for name, expected in zip(self._names, self.run_plainly(feed), strict=True):
            if not same_values(expected, replayed[name]):
                raise DeviceError(
                    f"output '{name}': a replayed CUDA graph gives other values than a run without it, as if the "
                    "inputs had not changed. Load the model without cuda_graphs."
                )
        return bound
