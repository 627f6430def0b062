"""What did a conversion do: gates, widths, cost, equality, what stayed and why, and how long did it take?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from converters.sources import GateGroup
from converters.verification import Verification
from converters.widths import WidthChange
from l0runtime.conditional import ConditionalModel

if TYPE_CHECKING:
    from rich.console import RenderableType

PREFIX = "l0runtime."
# metadata is read by eye and travels with every copy of the model, so it holds the costly part only
_LONGEST_LIST = 20


@dataclass(frozen=True)
class ModelCost:
    """Size and work of one model.

    Args:
        parameters: elements of all weights.
        macs: multiply-accumulates for one example.
        file_bytes: size of the ONNX file and its external data.
    """

    parameters: int
    macs: int
    file_bytes: int


@dataclass(frozen=True)
class KeptAxis:
    """Dead indices that stay.

    Args:
        where: value and axis, "relu_5[1]".
        count: how many indices.
        reason: why, with the operator that needs them.
        cost: parameters that are stored because of them.
    """

    where: str
    count: int
    reason: str
    cost: int


@dataclass(frozen=True)
class Report:
    """Everything that is known of one conversion; `to_json` and `render` show it.

    Args:
        source: path of the checkpoint, or the class of the module.
        format: name of the source format.
        output: path of the compact ONNX file.
        gates: the gate groups that the format knows of.
        widths: every layer with weights, before and after.
        before, after: cost of the gated and of the compact model.
        verification: figures of the comparison.
        kept: dead indices that stay and why, the most expensive first.
        without_rule: operator types that no rule describes, whose axes stay whole.
        notes: remarks of the source and of the export.
        conditional: blocks that run for some inputs only, None for a model without any.
        seconds: time per stage.
        peak_memory_bytes: the largest resident set of the process so far, Python and torch
            included; None where the system does not tell.
        versions: of l0runtime and what it stands on.
    """

    source: str
    format: str
    output: str
    gates: tuple[GateGroup, ...]
    widths: tuple[WidthChange, ...]
    before: ModelCost
    after: ModelCost
    verification: Verification
    kept: tuple[KeptAxis, ...]
    without_rule: tuple[str, ...]
    notes: tuple[str, ...] = ()
    conditional: ConditionalModel | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def render(self) -> RenderableType:
        """The report as rich tables; `print_report` writes them."""
        from converters.report_view import render_report

        return render_report(self)

    def __str__(self) -> str:
        from converters.report_view import as_text

        return as_text(self.render())

    def metadata(self) -> dict[str, str]:
        """What goes into the ONNX file: nothing that differs between two runs on the same input."""
        conditional = {} if self.conditional is None else self.conditional.metadata()
        return conditional | model_metadata(
            format=self.format,
            gates=self.gates,
            widths=self.widths,
            before=self.before,
            after=self.after,
            verification=self.verification,
            kept=self.kept,
            without_rule=self.without_rule,
            version=self.versions.get("l0runtime", ""),
        )


def model_metadata(
    *,
    format: str,
    gates: Iterable[GateGroup],
    widths: Iterable[WidthChange],
    before: ModelCost,
    after: ModelCost,
    verification: Verification,
    kept: Iterable[KeptAxis],
    without_rule: Iterable[str],
    version: str,
) -> dict[str, str]:
    """Metadata of a compact model, JSON under keys that start with "l0runtime."; no times, paths or dates."""
    entries: dict[str, Any] = {
        "version": version,
        "source_format": format,
        "gates": [asdict(group) for group in gates],
        "widths": [
            [change.before.layer, change.before.inputs, change.before.outputs]
            + ([change.after.inputs, change.after.outputs] if change.after else [0, 0])
            for change in widths
        ],
        "parameters": [before.parameters, after.parameters],
        "macs": [before.macs, after.macs],
        "verification": {
            "batches": list(verification.batches),
            "float32": _rounded(verification.largest),
            "torch": _rounded(verification.torch),
            "float64": _rounded(verification.float64),
            "limit": _rounded(verification.limit),
            "limit_reason": verification.limit_reason,
            "decided_by": verification.decided_by,
        },
        "kept": [asdict(axis) for axis in list(kept)[:_LONGEST_LIST]],
        "without_rule": list(without_rule),
    }
    return {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}


def _rounded(value: float | None) -> float | None:
    """Two digits: the rest of a rounding error means nothing."""
    return None if value is None else float(f"{value:.1e}")
