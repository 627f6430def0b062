"""How is a session made, so that it runs where it was asked to or not at all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from l0runtime.errors import DeviceError, L0RuntimeError, ModelFileError, OptionError, UnsupportedModelError
from l0runtime.onnx_files import check_model_path, read_model
from l0runtime.session.batches import check_options
from l0runtime.session.core import Session
from l0runtime.session.devices import (
    Device,
    absent,
    assigned_nodes,
    check_assignment,
    library_problem,
    memory_options,
    parse_device,
    preload_gpu_libraries,
    provider_list,
    quiet_provider_loading,
)
from l0runtime.session.known_options import SESSION_SETTINGS, check_known
from l0runtime.session.metrics import SessionMetrics
from l0runtime.session.precision import Precision, check_precision, with_precision

Optimization = Literal["all", "extended", "basic", "none"]
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "none": "ORT_DISABLE_ALL",
}
_OPTIONS = (
    "allow_cpu_nodes",
    "async_threads",
    "buckets",
    "cuda_graphs",
    "count_blocks",
    "device",
    "inter_op_threads",
    "max_batch",
    "memory_limit",
    "metrics",
    "optimization",
    "precision",
    "profile_prefix",
    "provider_options",
    "settings",
    "spin",
    "threads",
)


def load(
    path: str | Path | bytes,
    device: str = "cuda",
    *,
    precision: Precision | None = None,
    threads: int | None = None,
    inter_op_threads: int | None = None,
    spin: bool = True,
    allow_cpu_nodes: bool = False,
    optimization: Optimization = "all",
    async_threads: int = 1,
    max_batch: int | None = None,
    buckets: Sequence[int] = (),
    cuda_graphs: bool = False,
    memory_limit: int | None = None,
    metrics: SessionMetrics | None = None,
    count_blocks: bool = False,
    profile_prefix: str | Path | None = None,
    provider_options: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    **unknown: Any,
) -> Session:
    """Load an ONNX model onto a device.

    There is no silent fallback: asking for a GPU (the default) where none works raises, and so does a model of which
    some nodes would run on the CPU.

    Args:
        path: the .onnx file, or its bytes.
        device: "cuda", "cuda:<index>", "tensorrt", "tensorrt:<index>" or "cpu".
        precision: "float32", "float16" or "bfloat16": compute so, with float32 in and out; a float32 model is converted
            to float16, nothing else is converted (see precision.py). None for the model as it is stored.
        threads: threads inside an operator; onnxruntime's choice (one per physical core) if None.
        inter_op_threads: threads between operators; operators run one after another if None.
        spin: let waiting threads spin; False is better where other work wants the cores.
        allow_cpu_nodes: accept that part of a GPU model runs on the CPU; `Session.cpu_nodes` lists it.
        optimization: onnxruntime's graph optimisation level.
        async_threads: threads that `Session.run_async` uses.
        max_batch: larger batches are run in pieces of this size.
        buckets: ascending batch sizes; each piece is padded with zero rows up to the next one, and the result cut
            back. Both need a model that treats rows independently, which is checked on the first batch.
        cuda_graphs: record a CUDA graph for each batch size and replay it; needs device "cuda" and, for a model with a
            dynamic batch, buckets. Inputs are CPU arrays.
        memory_limit: bytes of GPU memory that onnxruntime may reserve for this session; the CPU has no such limit.
        metrics: counts this session's runs.
        count_blocks: count which blocks of a conditional model run; see `l0runtime.conditional.CountingSession`.
        profile_prefix: write onnxruntime's profile to files that begin so; None for no profile.
        provider_options: further options of the execution provider, by onnxruntime's names.
        settings: further session settings, by onnxruntime's names (`session.…`).
    Raises:
        ModelFileError: the file is missing, truncated, of another format or no valid model.
        DeviceError: the device is absent, or some nodes would run on the CPU.
        UnsupportedModelError: the model holds an operator or type that the provider lacks.
        OptionError: an unknown option or value.
    """
    check_known("option", unknown, _OPTIONS)
    where = parse_device(device)
    if optimization not in _LEVELS:
        raise OptionError(f"optimization '{optimization}': expected {', '.join(_LEVELS)}.")
    for name, count in (("threads", threads), ("inter_op_threads", inter_op_threads), ("async_threads", async_threads)):
        if count is not None and (not isinstance(count, int) or count < 1):
            raise OptionError(f"{name} = {count!r}: expected a whole number of at least 1.")
    check_options(max_batch, buckets)
    check_precision(precision)
    _check_gpu_options(where, cuda_graphs=cuda_graphs, allow_cpu_nodes=allow_cpu_nodes, memory_limit=memory_limit)
    check_known("session setting", settings or {}, SESSION_SETTINGS)
    options = dict(provider_options or {})
    if where.kind == "cuda":
        # TF32 rounds inputs to 10 bits and is on by default; the same function needs float32 to mean float32
        options = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"} | options
    if cuda_graphs:
        options["enable_cuda_graph"] = "1"
    if memory_limit is not None:
        options |= memory_options(where, memory_limit)
    providers = provider_list(where, options)
    source = "model" if isinstance(path, bytes) else str(check_model_path(path))
    if cuda_graphs:
        _check_no_branches(path, source)
    counted = None
    if count_blocks:
        if max_batch is not None or buckets:
            raise OptionError("count_blocks counts the samples of each run: leave out max_batch and buckets.")
        from l0runtime.conditional.counting import CountingSession, with_decisions, work_of

        counted = work_of(path)
    if precision is not None:
        path = with_precision(path, precision, source)
    if count_blocks:
        if not isinstance(path, bytes):
            settings = {"session.model_external_initializers_file_folder_path": str(Path(path).parent)} | {
                **(settings or {})
            }
        path = with_decisions(path)

    import onnxruntime

    made = onnxruntime.SessionOptions()
    # Errors only, as a warning for every initializer would bury them; on a GPU not even those, as the guard against
    # fallback reports through them what is raised anyway.
    made.log_severity_level = 3 if where.kind == "cpu" else 4
    made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[optimization])
    made.intra_op_num_threads = threads or 0
    if inter_op_threads is not None:
        made.inter_op_num_threads = inter_op_threads
        made.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    if profile_prefix is not None:
        made.enable_profiling = True
        made.profile_file_prefix = str(profile_prefix)
    made.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    made.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, value in (settings or {}).items():
        made.add_session_config_entry(name, value)
    if where.kind != "cpu":
        preload_gpu_libraries()
    model = path if isinstance(path, bytes) else str(path)
    raw = _create(model, made, providers, where, source, allow_cpu_nodes=allow_cpu_nodes)
    nodes = assigned_nodes(raw)
    check_assignment(where, nodes, allow_cpu_nodes=allow_cpu_nodes)
    session = Session(
        raw,
        where,
        source,
        nodes,
        async_threads=async_threads,
        max_batch=max_batch,
        buckets=buckets,
        cuda_graphs=cuda_graphs,
        metrics=metrics,
    )
    if cuda_graphs:
        _check_graph_shapes(session, buckets)
    return session if counted is None else CountingSession(session, counted)


def _check_gpu_options(device: Device, *, cuda_graphs: bool, allow_cpu_nodes: bool, memory_limit: int | None) -> None:
    if cuda_graphs and (device.kind != "cuda" or allow_cpu_nodes):
        found = f"device '{device}'" if device.kind != "cuda" else "allow_cpu_nodes"
        raise OptionError(f"cuda_graphs with {found}: a CUDA graph needs device 'cuda' and every node on it.")
    if memory_limit is not None and device.kind == "cpu":
        raise OptionError("memory_limit with device 'cpu': onnxruntime limits GPU memory only.")
    if memory_limit is not None and memory_limit < 1:
        raise OptionError(f"memory_limit = {memory_limit}: expected a number of bytes of at least 1.")


def _check_no_branches(path: str | Path | bytes, source: str) -> None:
    """A CUDA graph replays what was recorded; a model that branches on its inputs would take one path for ever."""
    import onnx

    proto = onnx.load_from_string(path) if isinstance(path, bytes) else read_model(path, weights=False)
    for node in proto.graph.node:
        if node.op_type in ("If", "Loop", "Scan"):
            raise OptionError(
                f"cuda_graphs: {source} branches on its inputs (node '{node.name}', {node.op_type}), and a CUDA graph "
                "replays one path. Load it without cuda_graphs."
            )


def _check_graph_shapes(session: Session, buckets: Sequence[int]) -> None:
    for spec in session.inputs:
        dynamic = [dim for axis, dim in enumerate(spec.shape) if not isinstance(dim, int) and (axis or not buckets)]
        if dynamic:
            raise OptionError(
                f"cuda_graphs: input '{spec}' has dynamic dimensions, and a graph has one shape. Give buckets for the "
                "batch, and export the model with its other dimensions fixed."
            )


def _create(
    model: str | bytes, options: Any, providers: Any, device: Device, source: str, *, allow_cpu_nodes: bool
) -> Any:
    """An onnxruntime session that runs on the provider asked for.

    Raises: see `load`.
    """
    import onnxruntime

    def create() -> Any:
        # `enable_fallback` is onnxruntime's retry on other providers, announced by a print
        with quiet_provider_loading(device):
            return onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)

    guarded = device.kind != "cpu" and not allow_cpu_nodes
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1" if guarded else "0")
    try:
        raw = create()
    except Exception as error:
        if not (guarded and "default CPU EP" in str(error)):
            raise _translate(error, device, source) from error
        # The guard says only that some node is on the CPU. A session without it tells which: is the whole provider
        # absent, or does it lack an operator? Either way that session is refused.
        with quiet_provider_loading(device):  # changing a setting is worth a warning to onnxruntime
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        raw = create()
        if device.provider in raw.get_providers():
            check_assignment(device, assigned_nodes(raw), allow_cpu_nodes=False)
            raise _translate(error, device, source) from error
    if device.provider not in raw.get_providers():
        raise absent(device)
    raw.disable_fallback()
    return raw


def _translate(error: Exception, device: Device, source: str) -> L0RuntimeError:
    """onnxruntime's error on loading, as one of this project's."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind == "NotImplemented":
        return UnsupportedModelError(f"{source}: {device.provider} cannot run it ({text}).")
    if library_problem(device) is not None:
        return absent(device)
    if device.kind != "cpu" and any(word in text for word in ("CUDA", "CUDNN", "TensorRT", "Tensorrt")):
        return absent(device, text)
    if kind in {"InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel", "Fail"}:
        return ModelFileError(
            f"{source}: onnxruntime cannot load it ({text}). The file is truncated, of another format or invalid; "
            "write or download it again."
        )
    return DeviceError(f"{source}: onnxruntime failed to prepare it for {device} ({text}).")
