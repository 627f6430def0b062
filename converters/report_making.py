"""How are the figures of a report collected?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from converters.report import KeptAxis, ModelCost, Report
from converters.widths import compare_widths

if TYPE_CHECKING:
    from torch.nn import Module

    from converters.compaction import RemovalPlan
    from converters.export import Exported
    from converters.sources import GatedModel
    from converters.verification import Verification

_DISTRIBUTIONS = ("l0runtime", "torch", "onnx", "onnx-ir", "onnxscript", "numpy")


class Stopwatch:
    """Times the stages of a conversion.

    Args:
        announce: called with the name of each stage as it begins.
    """

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        self._announce = announce
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self._announce is not None:
            self._announce(stage)
        begin = time.perf_counter()
        yield
        self._seconds[stage] = time.perf_counter() - begin

    def complete(self, report: Report, output: Path) -> Report:
        """The report with what is only known at the end: where the model goes, times and memory."""
        return replace(report, output=str(output), seconds=dict(self._seconds), peak_memory_bytes=peak_memory_bytes())


def make_report(
    source: str | Path | Module,
    gated: GatedModel,
    exported: Exported | None,
    gated_path: Path,
    compact_path: Path,
    plan: RemovalPlan,
    verification: Verification,
    notes: tuple[str, ...] = (),
) -> Report:
    """Compare the two files and gather what the stages found."""
    import onnx_ir as ir

    return Report(
        source=str(source) if isinstance(source, str | Path) else type(source).__name__,
        format=gated.format,
        output=str(compact_path),
        gates=gated.gates,
        widths=compare_widths(ir.load(str(gated_path)), ir.load(str(compact_path))),
        before=cost_of(gated_path, verification.shapes),
        after=cost_of(compact_path, verification.shapes),
        verification=verification,
        kept=kept_axes(plan),
        without_rule=plan.without_rule,
        notes=(*gated.notes, *(exported.notes if exported is not None else ()), *notes),
        versions=versions(),
    )


def kept_axes(plan: RemovalPlan) -> tuple[KeptAxis, ...]:
    """The plan's dead indices that stay, most expensive first, as the plan orders them."""
    return tuple(
        KeptAxis(f"{kept.value}[{kept.axis}]", kept.count, _reason(kept.node, kept.reason), kept.cost)
        for kept in plan.kept
    )


def cost_of(path: Path, shapes: dict[str, tuple[int, ...]]) -> ModelCost:
    """Parameters, multiply-accumulates and bytes of an ONNX file."""
    from l0runtime.measurement.cost import count_cost
    from l0runtime.onnx_files import stored_bytes

    cost = count_cost(path, shapes=shapes)
    return ModelCost(cost.parameters, cost.macs, stored_bytes(path))


def versions() -> dict[str, str]:
    """Versions of Python, l0runtime and the packages that decide what a conversion gives."""
    found = {"python": sys.version.split()[0]}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    import onnxruntime

    return found | {"onnxruntime": onnxruntime.__version__}


def peak_memory_bytes() -> int | None:
    """The largest resident set of this process so far; None on systems without getrusage."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024  # kilobytes on Linux, bytes on macOS


def _reason(node: str, reason: str) -> str:
    return f"{reason} ({node})" if node else reason
