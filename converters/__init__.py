"""Trained checkpoint to compact ONNX: `convert`, `verify`, `inspect`, and the `Report` they give.

    convert("gated.safetensors", "compact.onnx")       the whole pipeline (pipeline.py)
    verify("gated.onnx", "compact.onnx")               do two models compute the same function? (verification.py)
    inspect("model.onnx")                              what is in a file, what was kept and why? (inspection.py)
    compact_module(model, example_inputs)              a smaller torch module, to train further (smaller_module.py)
    Shrinker(trainer)                                  removes gates closed for good while training (shrinking.py)

Formats: one file each (formats/), found through sources.py. The engine is `compaction`.
Importing this package loads neither torch nor onnxruntime: each name is fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.inspection import Inspection as Inspection
    from converters.inspection import inspect as inspect
    from converters.pipeline import convert as convert
    from converters.report import Report as Report
    from converters.shrinking import Shrinkage as Shrinkage
    from converters.shrinking import Shrinker as Shrinker
    from converters.shrinking import shrink as shrink
    from converters.smaller_module import CompactedModule as CompactedModule
    from converters.smaller_module import compact_module as compact_module
    from converters.sources import GatedModel as GatedModel
    from converters.verification import Verification as Verification
    from converters.verification import verify as verify

__all__ = [
    "CompactedModule",
    "GatedModel",
    "Inspection",
    "Report",
    "Shrinkage",
    "Shrinker",
    "Verification",
    "compact_module",
    "convert",
    "inspect",
    "shrink",
    "verify",
]

_HOME = {
    "CompactedModule": "converters.smaller_module",
    "compact_module": "converters.smaller_module",
    "GatedModel": "converters.sources",
    "Inspection": "converters.inspection",
    "Report": "converters.report",
    "Verification": "converters.verification",
    "Shrinkage": "converters.shrinking",
    "Shrinker": "converters.shrinking",
    "shrink": "converters.shrinking",
    "convert": "converters.pipeline",
    "inspect": "converters.inspection",
    "verify": "converters.verification",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'converters' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
