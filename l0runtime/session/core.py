"""What can one do with a loaded model? Run it, on NumPy, torch or DLPack tensors, from any number of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from l0runtime.errors import InputError, L0RuntimeError, UnsupportedModelError
from l0runtime.session.arrays import (
    Array,
    Kind,
    as_numpy,
    from_numpy,
    gpu_to_ort_value,
    is_on_gpu,
    is_torch,
    ort_value_to_gpu_tensor,
    ort_value_view,
    to_ort_value,
    torch_dtype_as_numpy,
)
from l0runtime.session.batches import Batching, RowGuard
from l0runtime.session.bound import BoundRun
from l0runtime.session.devices import CPU, AssignedNode, Device
from l0runtime.session.graphs import GraphRuns
from l0runtime.session.metrics import SessionMetrics
from l0runtime.session.specs import InputChecker, TensorSpec, specs_of

# keys of the ONNX file's metadata that the converter writes
_METADATA_PREFIX = "l0runtime."


class Session:
    """A model on a device; made by `l0runtime.load`.

    Safe to share between threads. Outputs are new arrays; inputs are never changed.

    Attributes:
        inputs, outputs: the tensors it takes and gives.
        metadata: what the converter recorded in the file (keys without the `l0runtime.` prefix).
        device: where it runs.
        nodes: the provider of every node, before onnxruntime's last fusions.
    """

    def __init__(
        self,
        raw: Any,
        device: Device,
        source: str,
        nodes: tuple[AssignedNode, ...],
        *,
        async_threads: int = 1,
        max_batch: int | None = None,
        buckets: Sequence[int] = (),
        cuda_graphs: bool = False,
        metrics: SessionMetrics | None = None,
    ) -> None:
        self._raw = raw
        self._graphs = GraphRuns(raw, device.memory, device.index) if cuda_graphs else None
        self._metrics = metrics
        self._buckets = tuple(buckets)
        # The inner object's `run` skips name checks that are made here, and a fallback that is switched off.
        self._fast = getattr(raw, "_sess", raw)
        self._source = source
        self.device = device
        self.nodes = nodes
        self.inputs: tuple[TensorSpec, ...] = specs_of(raw.get_inputs())
        self.outputs: tuple[TensorSpec, ...] = specs_of(raw.get_outputs())
        self.metadata: dict[str, str] = {
            key.removeprefix(_METADATA_PREFIX): value
            for key, value in raw.get_modelmeta().custom_metadata_map.items()
            if key.startswith(_METADATA_PREFIX)
        }
        self._names = [spec.name for spec in self.outputs]
        self._known_names = frozenset(self._names)
        self._checker = InputChecker(self.inputs)
        # onnxruntime's array interface does not know bfloat16; OrtValues do
        self._needs_values = any(spec.dtype == "bfloat16" for spec in (*self.inputs, *self.outputs))
        self._batching: Batching | None = None
        if max_batch is not None or buckets:
            self._batching = Batching(RowGuard(self.inputs, self.outputs, self.metadata), max_batch, buckets)
        self._plain_cpu = (
            self.device.memory == "cpu" and self._batching is None and self._graphs is None and not self._needs_values
        )
        # the shortest way for most calls; None where every call takes the long one
        self._fits = self._checker.make_quick_check() if self._plain_cpu and metrics is None else None
        self._input_names = [spec.name for spec in self.inputs]
        self._async_threads = async_threads
        self._executor: ThreadPoolExecutor | None = None
        self._executor_lock = threading.Lock()

    def __repr__(self) -> str:
        takes = ", ".join(str(spec) for spec in self.inputs)
        gives = ", ".join(str(spec) for spec in self.outputs)
        return f"Session({self._source} on {self.device}: {takes} -> {gives})"

    @property
    def cpu_nodes(self) -> tuple[AssignedNode, ...]:
        """Nodes that run on the CPU although a GPU was asked for; empty unless that was allowed."""
        return () if self.device.kind == "cpu" else tuple(node for node in self.nodes if node.provider == CPU)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute outputs from named inputs.

        Args:
            inputs: name to NumPy array, torch tensor or other DLPack tensor.
            outputs: names of the wanted outputs; all by default.
        Returns:
            name to array: torch tensors if any input is one, else NumPy arrays. If an input is in GPU memory, the
            outputs stay there: torch tensors, or OrtValues, which are DLPack tensors.
        Raises:
            InputError: a wrong name, dtype or shape; or onnxruntime refused the values (an index out of range).
        """
        if outputs is None and self._fits is not None and self._fits(inputs):
            try:
                results = self._fast.run(self._names, inputs, None)
                if len(results) == 1:
                    return {self._names[0]: results[0]}
                return dict(zip(self._names, results, strict=True))
            except Exception as error:
                raise self._translate(error) from error
        names = self._names if outputs is None else self._check_outputs(outputs)
        run = self._run if self._metrics is None else self._counted_run
        return dict(zip(names, run(inputs, names), strict=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute all outputs; inputs in the model's order, by name, or both.

        Returns:
            the output, or a tuple if there are several.
        Raises:
            InputError: as `run`; also more positional inputs than the model has, or one given twice.
        """
        if self._fits is not None and not kwargs and len(args) == len(self._input_names):
            quick = (
                {self._input_names[0]: args[0]} if len(args) == 1 else dict(zip(self._input_names, args, strict=True))
            )
            if self._fits(quick):
                try:
                    results = self._fast.run(self._names, quick, None)
                except Exception as error:
                    raise self._translate(error) from error
                return results[0] if len(results) == 1 else tuple(results)
        if len(args) > len(self.inputs):
            raise InputError(f"{len(args)} positional inputs given; the model takes {len(self.inputs)}.")
        feed = {spec.name: value for spec, value in zip(self.inputs, args, strict=False)}
        for name in kwargs:
            if name in feed:
                raise InputError(f"input '{name}': given by position and by name.")
        run = self._run if self._metrics is None else self._counted_run
        results = run(feed | kwargs if kwargs else feed, self._names)
        return results[0] if len(results) == 1 else tuple(results)

    def run_async(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Future[dict[str, Any]]:
        """`run` on a thread of the session's own; `asyncio.wrap_future` makes the result awaitable.

        Errors, those of the inputs too, are raised by the future.
        """
        with self._executor_lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._async_threads, thread_name_prefix="l0runtime-session")
            return self._executor.submit(self.run, inputs, outputs)

    def bind(self, inputs: Mapping[str, Any]) -> BoundRun:
        """Bind the model to buffers of these inputs' shapes, for runs without allocation.

        Raises:
            InputError: a wrong name, dtype or shape.
        """
        feed, _ = self._numpy_feed(inputs)
        with self._translated():
            if self._graphs is not None:
                return self._graphs.bind(feed)
            return BoundRun(self._raw, self.device.memory, self.device.index, feed)

    def warm_up(self, *feeds: Mapping[str, Any], runs: int = 2) -> None:
        """Run on given inputs and drop the results, so that lazy allocation and kernel choice happen now.

        Args:
            feeds: inputs, one mapping for each shape to prepare; without any, zeros for every bucket (a batch of 1
                where there are none).
            runs: how often each.
        Raises:
            InputError: no inputs were given, and a dimension other than the batch is dynamic.
        """
        feeds = feeds or tuple(self._zeros(rows) for rows in self._buckets or (1,))
        for feed in feeds:
            for _ in range(runs):
                self.run(feed)

    def _zeros(self, rows: int) -> dict[str, Array]:
        feed = {}
        for spec in self.inputs:
            sizes = [rows if axis == 0 and not isinstance(dim, int) else dim for axis, dim in enumerate(spec.shape)]
            shape = [size for size in sizes if isinstance(size, int)]
            if len(shape) != len(sizes):
                raise InputError(f"input '{spec}': has dynamic dimensions; give inputs to warm up on.")
            feed[spec.name] = np.zeros(shape, spec.numpy_dtype)
        return feed

    def end_profiling(self) -> str:
        """Stop the profile that `load(..., profile_prefix=...)` began; the path of its JSON file."""
        return str(self._raw.end_profiling())

    def close(self) -> None:
        """Wait for `run_async` calls and stop their threads."""
        with self._executor_lock:
            if self._executor is not None:
                self._executor.shutdown(wait=True)
                self._executor = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- below: one call, step by step ------------------------------------------------------------------------------

    def _check_outputs(self, outputs: Iterable[str]) -> list[str]:
        names = list(outputs)
        for name in names:
            if name not in self._known_names:
                raise InputError(f"'{name}' is no output. The model gives {'; '.join(map(str, self.outputs))}.")
        return names

    def _counted_run(self, inputs: Mapping[str, Any], names: list[str]) -> list[Any]:
        return self._counted(inputs, lambda: self._run(inputs, names))

    def _counted(self, inputs: Mapping[str, Any], run: Callable[[], list[Any]]) -> list[Any]:
        assert self._metrics is not None
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            return run()
        except Exception as error:
            failure = error
            raise
        finally:
            self._metrics.count(self._source, inputs, time.perf_counter() - started, failure)

    def _run(self, inputs: Mapping[str, Any], names: list[str]) -> list[Any]:
        self._checker.check_names(inputs)
        if self.device.memory != "cpu" and any(is_on_gpu(value) for value in inputs.values()):
            if self._batching is not None or self._graphs is not None:
                raise InputError(
                    "max_batch, buckets and cuda_graphs take CPU arrays; load without them to pass GPU tensors."
                )
            return self._run_on_gpu(inputs, names)
        feed, kind = self._numpy_feed(inputs)
        if self._batching is None:
            results = self._run_arrays(feed, names)
        else:
            everything = dict(zip(self._names, self._run_pieces(self._batching, feed), strict=True))
            results = [everything[name] for name in names]
        return results if kind == "numpy" else [from_numpy(result, kind) for result in results]

    def check(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Array], Kind]:
        """The inputs as NumPy views in the model's order, and the kind of array that `run` would return for them.

        Raises:
            InputError: a wrong name, dtype or shape.
        """
        return self._numpy_feed(inputs)

    def run_arrays(self, feed: dict[str, Array]) -> list[Any]:
        """All outputs of a feed that `check` gave, without checking it again.

        In one run, except where CUDA graphs tie the session to its buckets.
        """
        if self._graphs is not None and self._batching is not None:
            return self._run_pieces(self._batching, feed)
        return self._run_arrays(feed, self._names)

    def run_batch(self, feed: dict[str, Array]) -> list[Any]:
        """`run_arrays`, counted by the session's metrics: for a batch that was merged from requests."""
        if self._metrics is None:
            return self.run_arrays(feed)
        return self._counted(feed, lambda: self.run_arrays(feed))

    def _run_pieces(self, batching: Batching, feed: dict[str, Array]) -> list[Any]:
        plainly = None if self._graphs is None else self._graphs.run_plainly
        return batching.run(lambda piece: self._run_arrays(piece, self._names), feed, plainly)

    def _numpy_feed(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Array], Kind]:
        """The inputs as checked NumPy views, in the model's order, and the kind of array to return."""
        self._checker.check_names(inputs)
        kind: Kind = "numpy"
        sizes: dict[str, int] = {}
        feed: dict[str, Array] = {}
        for spec in self.inputs:
            value = inputs[spec.name]
            if type(value) is not np.ndarray:
                if is_torch(value):
                    kind = "torch"
                value = as_numpy(spec.name, value)
            self._checker.check(spec.name, value.dtype, value.shape, sizes)
            feed[spec.name] = value
        return feed, kind

    def _run_arrays(self, feed: dict[str, Array], names: list[str]) -> list[Any]:
        try:
            if self._graphs is not None:
                found = dict(zip(self._names, self._graphs.run(feed), strict=True))
                return [found[name] for name in names]
            if not self._needs_values:
                results: list[Any] = self._fast.run(names, feed, None)
                return results
            values = self._raw.run_with_ort_values(names, {name: to_ort_value(array) for name, array in feed.items()})
            return [np.array(ort_value_view(value)) for value in values]
        except Exception as error:
            raise self._translate(error) from error

    def _run_on_gpu(self, inputs: Mapping[str, Any], names: list[str]) -> list[Any]:
        """Inputs in GPU memory stay there, and so do the outputs; the binding is this call's own."""
        kind: Kind = "torch" if any(is_torch(value) for value in inputs.values()) else "numpy"
        sizes: dict[str, int] = {}
        binding = self._raw.io_binding()
        kept = []  # OrtValues that must outlive the run
        for spec in self.inputs:
            value = inputs[spec.name]
            if is_on_gpu(value):
                self._checker.check(spec.name, torch_dtype_as_numpy(value), value.shape, sizes)
                kept.append(gpu_to_ort_value(spec.name, value))
            else:
                array = as_numpy(spec.name, value)
                self._checker.check(spec.name, array.dtype, array.shape, sizes)
                kept.append(to_ort_value(array))
            binding.bind_ortvalue_input(spec.name, kept[-1])
        for name in names:
            binding.bind_output(name, self.device.memory, self.device.index)
        with self._translated():
            self._raw.run_with_iobinding(binding)
            binding.synchronize_outputs()
        return [ort_value_to_gpu_tensor(value, kind) for value in binding.get_outputs()]

    def _translated(self) -> _Translated:
        return _Translated(self)

    def _translate(self, error: Exception) -> Exception:
        """onnxruntime's error in words of this project: values that it refuses, else a run that failed."""
        if isinstance(error, L0RuntimeError):
            return error
        text = " ".join(str(error).split())
        if type(error).__name__ == "InvalidArgument" or "out of data bounds" in text or "out of bounds" in text:
            return InputError(f"{self._source}: onnxruntime refused the inputs ({text}).")
        return UnsupportedModelError(f"{self._source}: the run on {self.device} failed ({text}).")


class _Translated:
    """Context in which onnxruntime's errors become this project's."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            raise self._session._translate(error) from error
