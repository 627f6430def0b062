"""Run a compact model: `load` gives a `Session`.

| file | question |
|---|---|
| loading.py | how is a session made, so that it runs where it was asked to or not at all? |
| core.py | what can one do with it? |
| specs.py | which tensors does it take, and does what a caller passes fit? |
| arrays.py | how do NumPy, torch and DLPack tensors enter and leave without copies? |
| bound.py | how does one run many times at one shape with no allocation? |
| batches.py | how is a batch cut into sizes that a model should see? |
| microbatcher.py | how do many small requests share one run? |
| graphs.py | how does one replay a CUDA graph for each shape, with no stale results? |
| precision.py | in which precision does a model compute? |
| metrics.py | what did a session do, counted for Prometheus? |
| devices.py | how is a silent fallback made impossible? |
| known_options.py | which option names does onnxruntime know? |
"""

from __future__ import annotations

from l0runtime.session.bound import BoundRun
from l0runtime.session.core import Session
from l0runtime.session.loading import load
from l0runtime.session.metrics import SessionMetrics
from l0runtime.session.microbatcher import MicroBatcher
from l0runtime.session.specs import TensorSpec

__all__ = ["BoundRun", "MicroBatcher", "Session", "SessionMetrics", "TensorSpec", "load"]
