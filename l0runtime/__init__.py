"""Serve, measure and train gated networks that l0runtime has made compact.

`load` and `Session` run a compact ONNX model, `bench` compares two, `doctor` checks the installation;
`l0runtime.gates` (which needs torch) trains gated networks. Conversion lives in the `converters` package.
Importing this module loads neither torch nor onnxruntime: each name is fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l0runtime.diagnosis import doctor as doctor
    from l0runtime.measurement import bench as bench
    from l0runtime.session import Session as Session
    from l0runtime.session import load as load

__all__ = ["Session", "bench", "doctor", "load"]

_HOME = {
    "Session": "l0runtime.session",
    "load": "l0runtime.session",
    "bench": "l0runtime.measurement",
    "doctor": "l0runtime.diagnosis",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'l0runtime' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
