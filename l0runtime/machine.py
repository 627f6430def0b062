"""What machine is this: processor, usable cores, GPUs, versions? Recorded beside every measurement."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

_REPORTED = ("l0runtime", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "torch")


def usable_cores() -> int:
    """Cores that this process may run on; a container's quota is not visible here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """Runnable processes over the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def nvidia_gpus() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that the driver shows; empty without a driver. Asks the driver, not CUDA's toolkit."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    names = []
    for index in range(count.value):
        name = ctypes.create_string_buffer(256)
        device = ctypes.c_int()
        if driver.cuDeviceGet(ctypes.byref(device), index) == 0 and driver.cuDeviceGetName(name, 256, device) == 0:
            names.append(name.value.decode(errors="replace"))
    return tuple(names)


def installed_version(distribution: str) -> str | None:
    """A distribution's version, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_machine() -> dict[str, object]:
    """Processor, cores, GPUs, system and versions, ready for JSON."""
    return {
        "processor": processor_name(),
        "usable_cores": usable_cores(),
        "gpus": list(nvidia_gpus()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in _REPORTED if (version := installed_version(name)) is not None},
    }
