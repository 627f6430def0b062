"""How does one run a model many times at one shape with no allocation at all?

`Session.bind` gives a `BoundRun`: input and output buffers bound once. On the CPU the caller writes into
`bound.inputs[name]` and reads `bound.outputs[name]`, which are views of those buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from l0runtime.errors import InputError
from l0runtime.session.arrays import Array, ort_value_view, to_ort_value


class BoundRun:
    """A model bound to fixed buffers at fixed shapes.

    One at a time: a lock makes concurrent `run` calls wait, since a binding that two threads share crashes
    onnxruntime. For parallel work, bind once per thread.
    """

    def __init__(
        self, raw: Any, memory: str, index: int, feed: Mapping[str, Array], *, graph: int | None = None
    ) -> None:
        """Bind.

        Args:
            raw: the onnxruntime session.
            memory, index: where its tensors live.
            feed: shapes, dtypes and first values of the inputs.
            graph: the number of a CUDA graph of its own; None where CUDA graphs are not enabled.
        """
        import onnxruntime

        self._raw = raw
        self._memory = memory
        self._lock = threading.Lock()
        self._run_options = None if graph is None else make_run_options(graph)
        self._binding = raw.io_binding()
        self._in = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), _element_type(array), memory, index
            )
            for name, array in feed.items()
        }
        for name, array in feed.items():
            self._write(name, array)
            self._binding.bind_ortvalue_input(name, self._in[name])
        # a first run lets onnxruntime allocate the outputs; those buffers are then bound for good
        names = [output.name for output in raw.get_outputs()]
        first = raw.io_binding()
        for name, value in self._in.items():
            first.bind_ortvalue_input(name, value)
        for name in names:
            first.bind_output(name, memory, index)
        # this run has other output buffers than those that follow, so no graph may be recorded from it
        raw.run_with_iobinding(first, None if graph is None else make_run_options(-1))
        self._out = dict(zip(names, first.get_outputs(), strict=True))
        for name, value in self._out.items():
            self._binding.bind_ortvalue_output(name, value)

    @property
    def inputs(self) -> dict[str, Array]:
        """Writable views of the input buffers (CPU only; on a GPU use `update`)."""
        self._need_cpu("inputs")
        return {name: ort_value_view(value) for name, value in self._in.items()}

    @property
    def outputs(self) -> dict[str, Array]:
        """The outputs of the last run: views on the CPU (the next run overwrites them), copies from a GPU."""
        if self._memory == "cpu":
            return {name: ort_value_view(value) for name, value in self._out.items()}
        return {name: np.array(value.numpy()) for name, value in self._out.items()}

    def update(self, inputs: Mapping[str, Array]) -> None:
        """Copy new values into the input buffers.

        Raises:
            InputError: an unknown name, or another dtype or shape than bound.
        """
        with self._lock:
            for name, array in inputs.items():
                if name not in self._in:
                    raise InputError(f"'{name}' is no input. Bound are {', '.join(self._in)}.")
                self._write(name, array)

    def run(self) -> None:
        """Compute the outputs from what the input buffers hold; returns when they are complete."""
        with self._lock:
            self._raw.run_with_iobinding(self._binding, self._run_options)
            if self._memory != "cpu":
                self._binding.synchronize_outputs()

    def _write(self, name: str, array: Array) -> None:
        value = self._in[name]
        if list(array.shape) != list(value.shape()):
            raise InputError(f"input '{name}': found shape {list(array.shape)}, bound with {list(value.shape())}.")
        if self._memory == "cpu":
            view = ort_value_view(value)
            if array.dtype != view.dtype:
                raise InputError(f"input '{name}': found dtype {array.dtype}, bound with {view.dtype}.")
            np.copyto(view, array)
        else:
            value.update_inplace(to_ort_value(array))

    def _need_cpu(self, what: str) -> None:
        if self._memory != "cpu":
            raise InputError(f"'{what}' are views of CPU buffers; this session runs on a GPU. Use update().")


def make_run_options(graph: int) -> Any:
    """Run options that name a CUDA graph, or with -1 none."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _element_type(array: Array) -> Any:
    if array.dtype.name == "bfloat16":
        import onnx

        return int(onnx.TensorProto.BFLOAT16)
    return array.dtype.type
