"""How do a report and an inspection look on a terminal?"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from converters.inspection import Inspection
    from converters.report import KeptAxis, Report
    from converters.sources import GateGroup
    from converters.verification import Verification
    from converters.widths import LayerWidth, WidthChange
    from l0runtime.conditional import ConditionalModel

_SHOWN_REASONS = 10
_TEXT_WIDTH = 120
_FORMS = {"single": "batch of 1", "samples": "each sample", "batch": "whole batch"}


def as_text(renderable: RenderableType) -> str:
    """Plain text without colours, 120 columns wide."""
    console = Console(file=io.StringIO(), width=_TEXT_WIDTH, color_system=None)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip("\n")


def render_report(report: Report) -> RenderableType:
    """Gates, widths, cost, verification, what stayed and why, notes, time."""
    parts: list[RenderableType] = [Text(f"{report.source} ({report.format}) -> {report.output}", style="bold")]
    if report.gates:
        parts.append(gate_table(report.gates))
    parts += [width_table(report.widths), _cost_table(report), _verification_text(report.verification)]
    if report.conditional is not None:
        parts.append(conditional_table(report.conditional))
    parts += kept_lines(report.kept, report.without_rule)
    parts += [Text(f"note: {note}") for note in report.notes]
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.seconds.items())
    if report.peak_memory_bytes is not None:
        stages += f"; peak memory of the process {report.peak_memory_bytes / 2**20:.0f} MiB"
    parts.append(Text(f"time: {stages}"))
    return Group(*parts)


def render_inspection(found: Inspection) -> RenderableType:
    """What a file holds; see Inspection."""
    kind = "compact ONNX file made by l0runtime" if found.format == "compact" else f"format {found.format}"
    parts: list[RenderableType] = [Text(f"{found.path}: {kind}, {found.parameters:,} parameters", style="bold")]
    if found.gates:
        parts.append(gate_table(found.gates))
    if found.zeros:
        table = Table("layer", title="channels that are exactly zero", title_justify="left")
        for name in ("inputs", "outputs"):
            table.add_column(name, justify="right")
        for layer in found.zeros:
            table.add_row(layer.layer, str(layer.inputs), str(layer.outputs))
        parts.append(table)
    if found.widths:
        title = "widths, before and after" if found.format == "compact" else "widths, now and after a conversion"
        parts.append(width_table(found.widths, title))
    if found.conditional is not None:
        parts.append(conditional_table(found.conditional))
    parts += kept_lines(found.kept, found.without_rule)
    parts += [Text(f"{key}: {_plain(value)}") for key, value in found.conversion.items()]
    return Group(*parts)


def gate_table(gates: tuple[GateGroup, ...]) -> Table:
    """One line per gate group."""
    table = Table("gated layer", "rule", title="gates", title_justify="left")
    for name in ("units", "kept"):
        table.add_column(name, justify="right")
    for group in gates:
        table.add_row(group.layer, group.rule or "", str(group.units), str(group.kept))
    return table


def width_table(widths: tuple[WidthChange, ...], title: str = "widths") -> Table:
    """One line per layer with weights, inputs and outputs before and after."""
    table = Table("layer", "operator", title=title, title_justify="left")
    for name in ("inputs", "outputs"):
        table.add_column(name, justify="right")
    for change in widths:
        table.add_row(
            change.before.layer,
            change.before.operator + (f" ({change.before.groups} groups)" if change.before.groups > 1 else ""),
            _change(change.before.inputs, change.after, "inputs"),
            _change(change.before.outputs, change.after, "outputs"),
        )
    return table


def conditional_table(model: ConditionalModel) -> Group:
    """One line per block that runs for some inputs only; its work is that of one sample, without blocks within it."""
    always, masked = model.macs_always, model.macs_masked
    head = Text(f"blocks that run for some inputs only: {always:,} MACs when none runs, {masked:,} when all do")
    table = Table("block", "within", "decided for")
    for name in ("MACs", "its gate's", "parameters"):
        table.add_column(name, justify="right")
    for block in model.blocks:
        parent = "" if block.parent is None else model.blocks[block.parent].name
        figures = (block.macs, block.gate_macs, block.parameters)
        table.add_row(block.name, parent, _FORMS.get(block.form, block.form), *(f"{figure:,}" for figure in figures))
    return Group(head, table)


def kept_lines(kept: tuple[KeptAxis, ...], without_rule: tuple[str, ...]) -> list[RenderableType]:
    """What stayed although it is dead, one line each, the most expensive first."""
    lines: list[RenderableType] = []
    if kept:
        lines.append(Text("dead indices that stay, most expensive first:", style="bold"))
        lines += [
            Text(f"  {axis.where}: {axis.count} of them, {axis.cost} parameters: {axis.reason}")
            for axis in kept[:_SHOWN_REASONS]
        ]
        if len(kept) > _SHOWN_REASONS:
            lines.append(Text(f"  and {len(kept) - _SHOWN_REASONS} more, see the JSON report"))
    if without_rule:
        lines.append(Text(f"operators without a rule, whose axes stay whole: {', '.join(without_rule)}"))
    return lines


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " -> ".join(f"{entry:,}" if isinstance(entry, int) else str(entry) for entry in value)
    return str(value)


def _change(before: int, after: LayerWidth | None, side: str) -> str:
    if after is None:
        return f"{before} -> gone"
    now: int = getattr(after, side)
    return str(before) if now == before else f"{before} -> {now}"


def _cost_table(report: Report) -> Table:
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in report.verification.shapes.items())
    table = Table("", title=f"cost at {shapes}", title_justify="left")
    for name in ("gated", "compact", "factor"):
        table.add_column(name, justify="right")
    for label, attribute in (("parameters", "parameters"), ("MACs", "macs"), ("file bytes", "file_bytes")):
        before, after = getattr(report.before, attribute), getattr(report.after, attribute)
        table.add_row(label, f"{before:,}", f"{after:,}", f"{before / after:.2f}x" if after else "-")
    return table


def _verification_text(verification: Verification) -> Text:
    figures = []
    if verification.largest is not None:
        figures.append(f"gated against compact {verification.largest:.1e} of the output's scale")
    if verification.torch is not None:
        figures.append(f"torch against compact {verification.torch:.1e}")
    figures.append(f"limit {verification.limit:.1e} ({verification.limit_reason})")
    if verification.float64 is not None:
        figures.append(f"in float64 {verification.float64:.1e}")
    else:
        figures.append(f"float64: {verification.float64_skipped}")
    text = f"verified equal on {len(verification.batches)} batches: {'; '.join(figures)}"
    if verification.decided_by == "float64":
        text += ". Decided in float64: float32 amplifies rounding here, on both sides"
    return Text(text)
