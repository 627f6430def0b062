"""Where does a session run, and how is a silent fallback made impossible?

onnxruntime runs on the CPU, with no more than a line on stderr, when a GPU was asked for and cannot be used.
Three guards close that: the provider must be in the created session; no node may be on the CPU provider unless
allowed (`session.disable_cpu_ep_fallback`, checked again on the recorded node assignment); and the fallback that
rebuilds a session on the CPU after a failing run is switched off.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0runtime.errors import DeviceError, OptionError
from l0runtime.session.known_options import check_known, known_provider_options

CPU = "CPUExecutionProvider"
_PROVIDERS = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_NODES_SHOWN = 8


@dataclass(frozen=True)
class Device:
    """A device asked for by name."""

    kind: str  # cpu, cuda or tensorrt
    index: int = 0

    @property
    def provider(self) -> str:
        """The execution provider that must run the model."""
        return _PROVIDERS[self.kind]

    @property
    def memory(self) -> str:
        """Where its tensors live, in onnxruntime's words."""
        return "cpu" if self.kind == "cpu" else "cuda"

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


def parse_device(text: str) -> Device:
    """`cpu`, `cuda`, `cuda:1`, `tensorrt` or `tensorrt:1`.

    Raises:
        OptionError: anything else.
    """
    match = re.fullmatch(r"(cpu|cuda|tensorrt)(?::(\d+))?", text)
    if match is None or (match[1] == "cpu" and match[2] is not None):
        raise OptionError(f"device '{text}': expected cpu, cuda, cuda:<index>, tensorrt or tensorrt:<index>.")
    return Device(match[1], int(match[2] or 0))


def provider_list(device: Device, options: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """The providers to create a session with: the one asked for, and for TensorRT also CUDA for what it leaves.

    Raises:
        OptionError: an option that the provider does not know; onnxruntime would ignore it.
    """
    if device.kind == "cpu":
        check_known("provider option", options, known_provider_options(device.provider))
        return [(CPU, dict(options))]
    check_known("provider option", options, known_provider_options(device.provider))
    first = {"device_id": str(device.index), **options}
    providers = [(device.provider, first)]
    if device.kind == "tensorrt":
        providers.append((_PROVIDERS["cuda"], {"device_id": str(device.index), "use_tf32": "0"}))
    return providers


def memory_options(device: Device, limit_bytes: int) -> dict[str, str]:
    """Provider options that bound what onnxruntime reserves on a GPU."""
    if device.kind == "tensorrt":
        return {"trt_max_workspace_size": str(limit_bytes)}
    # the default strategy doubles with every extension, and would meet the limit long before the memory is used
    return {"gpu_mem_limit": str(limit_bytes), "arena_extend_strategy": "kSameAsRequested"}


def preload_gpu_libraries() -> None:
    """Let onnxruntime find CUDA and cuDNN inside the Python environment (nvidia wheels, or torch's)."""
    import onnxruntime

    # it prints what it cannot find; where that matters, `library_problem` says it in the error
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


@contextlib.contextmanager
def quiet_provider_loading(device: Device) -> Iterator[None]:
    """Hold back what onnxruntime logs while it tries to load a GPU provider; the error that follows is clearer."""
    import onnxruntime

    if device.kind == "cpu":
        yield
        return
    onnxruntime.set_default_logger_severity(4)  # fatal only
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # onnxruntime's default: warnings


def library_problem(device: Device) -> str | None:
    """Why the provider's library cannot be loaded, in the dynamic linker's words; None if it can."""
    if device.kind == "cpu":
        return None
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    prefix, suffix = ("", ".dll") if sys.platform == "win32" else ("lib", ".so")
    name = f"{prefix}onnxruntime_providers_{device.kind}{suffix}"
    if not (folder / name).exists():
        return f"the installed onnxruntime holds no {name}; install onnxruntime-gpu"
    try:
        ctypes.CDLL(str(folder / f"{prefix}onnxruntime_providers_shared{suffix}"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / name))
    except OSError as error:
        return str(error)
    return None


def absent(device: Device, detail: str | None = None) -> DeviceError:
    """The error for a device that cannot be used on this machine."""
    detail = detail or library_problem(device) or "no usable device was found"
    return DeviceError(
        f"device '{device}': {device.provider} cannot be used here ({detail}). "
        'Nothing falls back silently: pass device="cpu" (--device cpu) to run on the CPU, or see `l0runtime doctor`.'
    )


@dataclass(frozen=True)
class AssignedNode:
    """A node and the provider that runs it, as onnxruntime recorded before its last fusions."""

    name: str
    op_type: str
    provider: str


def assigned_nodes(session: Any) -> tuple[AssignedNode, ...]:
    """The provider of every node; the session must have been created with the record switched on."""
    return tuple(
        AssignedNode(node.name, node.op_type, subgraph.ep_name)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    )


def check_assignment(device: Device, nodes: tuple[AssignedNode, ...], *, allow_cpu_nodes: bool) -> None:
    """Refuse a session of which part would run on the CPU.

    Raises:
        DeviceError: names the nodes on the CPU.
    """
    if device.kind == "cpu" or allow_cpu_nodes:
        return
    on_cpu = [node for node in nodes if node.provider == CPU]
    if on_cpu:
        shown = ", ".join(f"{node.name or 'unnamed'} ({node.op_type})" for node in on_cpu[:_NODES_SHOWN])
        more = f" and {len(on_cpu) - _NODES_SHOWN} more" if len(on_cpu) > _NODES_SHOWN else ""
        raise DeviceError(
            f"device '{device}': {len(on_cpu)} of {len(nodes)} nodes would run on the CPU: {shown}{more}. "
            "Pass allow_cpu_nodes=True (--allow-cpu-nodes) to accept that."
        )
