"""What is in a file: gates, widths, what could be removed, and why is the rest not cut?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from converters.report import PREFIX, KeptAxis
from converters.sources import Candidate, GateGroup, SourceOptions, find_source
from converters.widths import LayerWidth, WidthChange
from l0runtime.conditional import ConditionalModel, read_conditional
from l0runtime.conditional.metadata import KEY as CONDITIONAL
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converters.compaction import RemovalPlan

_Entry = TypeVar("_Entry")
_SHOWN_APART = ("gates", "widths", "kept", "without_rule", CONDITIONAL)


@dataclass(frozen=True)
class ZeroChannels:
    """Channels of one layer whose weights are all exactly zero."""

    layer: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Args:
        path: the file.
        format: name of its source format, or "compact" for an ONNX file that l0runtime made.
        parameters: elements of all floating-point tensors.
        gates: gate groups of a checkpoint, or those a compact file records.
        widths: layers of an ONNX file, before and after a compaction; of a compact file as it records them.
        zeros: layers of an ONNX file with exact-zero channels.
        kept: dead indices that stay and why, the most expensive first.
        without_rule: operator types that no rule describes.
        conditional: blocks of a compact file that run for some inputs only; None for a file without any.
        conversion: what a compact file records of its conversion: version, cost, verification.
        plan: the whole removal plan of an ONNX file; not part of the JSON.
    """

    path: str
    format: str
    parameters: int
    gates: tuple[GateGroup, ...] = ()
    widths: tuple[WidthChange, ...] = ()
    zeros: tuple[ZeroChannels, ...] = ()
    kept: tuple[KeptAxis, ...] = ()
    without_rule: tuple[str, ...] = ()
    conditional: ConditionalModel | None = None
    conversion: Mapping[str, Any] = field(default_factory=dict)
    plan: RemovalPlan | None = None

    def explain(self, value: str, axis: int) -> str:
        """One line: why the axis of a value of an ONNX file is cut as it is, or not.

        Raises:
            OptionError: the file is no ONNX file that is still to be converted.
        """
        if self.plan is None:
            raise OptionError(f"{self.path}: only an ONNX file that is not converted yet has a plan to explain.")
        return self.plan.explain(value, axis)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        fields = {name: value for name, value in vars(self).items() if name != "plan"}
        plain: dict[str, Any] = json.loads(json.dumps(fields, default=asdict))
        return plain

    def render(self) -> RenderableType:
        """The inspection as rich tables."""
        from converters.report_view import render_inspection

        return render_inspection(self)

    def __str__(self) -> str:
        from converters.report_view import as_text

        return as_text(self.render())


def inspect(
    path: str | Path, *, format: str | None = None, model: Any = None, options: Mapping[str, str] | None = None
) -> Inspection:
    """Say what is in a checkpoint or ONNX file.

    Args:
        path: the file.
        format, model, options: as for `convert`.
    Raises:
        ModelFileError: missing, truncated, or of no known format.
    """
    file = Candidate(path)
    source = find_source(file, format)
    gated = source.load(file, SourceOptions(model=model, extra=options or {}))
    if gated.onnx_path is not None:
        return _inspect_onnx(gated.onnx_path)
    tensors = gated.module if gated.module is not None else gated.program
    assert tensors is not None
    parameters = sum(t.numel() for t in tensors.state_dict().values() if getattr(t, "is_floating_point", bool)())
    return Inspection(str(path), source.name, parameters, gates=gated.gates)


def _inspect_onnx(path: Path) -> Inspection:
    import onnx_ir as ir

    from converters.compaction import compact
    from converters.report_making import kept_axes
    from converters.widths import compare_widths, zero_channels

    model = ir.load(str(path))
    parameters = sum(
        value.const_value.size
        for graph in [model.graph, *model.graph.subgraphs()]
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    )
    recorded = {
        key.removeprefix(PREFIX): value for key, value in model.metadata_props.items() if key.startswith(PREFIX)
    }
    if "version" in recorded:
        return _inspect_compact(path, parameters, recorded)
    zeros = tuple(
        ZeroChannels(width.layer, inputs, outputs)
        for width, inputs, outputs in zero_channels(model)
        if inputs + outputs
    )
    compaction = compact(ir.load(str(path)))
    return Inspection(
        str(path),
        "onnx",
        parameters,
        widths=compare_widths(model, compaction.model),
        zeros=zeros,
        kept=kept_axes(compaction.plan),
        without_rule=compaction.plan.without_rule,
        plan=compaction.plan,
    )


def _inspect_compact(path: Path, parameters: int, recorded: Mapping[str, str]) -> Inspection:
    """What a compact file says of itself."""
    return Inspection(
        str(path),
        "compact",
        parameters,
        gates=tuple(_entries(recorded, "gates", lambda group: GateGroup(**group))),
        widths=tuple(_entries(recorded, "widths", _width_change)),
        kept=tuple(_entries(recorded, "kept", lambda axis: KeptAxis(**axis))),
        without_rule=tuple(_entries(recorded, "without_rule", str)),
        conditional=_blocks(recorded),
        conversion={key: _value(text) for key, text in recorded.items() if key not in _SHOWN_APART},
    )


def _entries(recorded: Mapping[str, str], key: str, make: Callable[[Any], _Entry]) -> list[_Entry]:
    """A recorded list; empty where it is missing, or where somebody edited it so that it does not parse."""
    try:
        return [make(entry) for entry in json.loads(recorded[key])]
    except (KeyError, TypeError, ValueError):
        return []


def _blocks(recorded: Mapping[str, str]) -> ConditionalModel | None:
    try:
        return read_conditional(recorded)
    except ModelFileError:  # edited
        return None


def _width_change(entry: list[Any]) -> WidthChange:
    layer, before_in, before_out, after_in, after_out = entry
    after = LayerWidth(layer, "", after_in, after_out) if after_in or after_out else None
    return WidthChange(LayerWidth(layer, "", before_in, before_out), after)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a version, a name
        return text
