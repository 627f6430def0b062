"""How does a trained gated model become a compact, verified ONNX file?

source -> gated model -> ONNX with constant gates -> compact ONNX -> verified -> written, with a report
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.alignment import Align, Target, check_align, pad_if_faster
from converters.output_files import (
    GATED,
    append_metadata,
    publish,
    replace_model,
    save_model,
    staging_folder,
    write_report,
)
from converters.report_making import Stopwatch, make_report
from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    from torch.nn import Module

    from converters.compaction import Compaction, Widths
    from converters.conditional import Settled
    from converters.export import Exported
    from converters.report import Report
    from converters.verification import Verification

    Array = np.ndarray[Any, Any]


def convert(
    source: str | Path | Module,
    output: str | Path,
    *,
    model: str | Callable[[], Any] | None = None,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    format: str | None = None,
    options: Mapping[str, str] | None = None,
    inputs: Sequence[Mapping[str, Array]] | None = None,
    dynamic_shapes: Any = None,
    opset: int | None = None,
    exact: bool | None = None,
    report: str | Path | None = None,
    gated_output: str | Path | None = None,
    align: Align = "none",
    align_for: Target | None = None,
    measure: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Turn a gated model into a compact ONNX file that computes the same function.

    Args:
        source: a checkpoint or ONNX file, or a live torch module.
        output: the ONNX file to write; only a verified model gets there.
        model: builds the architecture for a file that holds parameters alone: "package.module:factory", or a callable.
        example_inputs: positional inputs of the module, batch first, where the format does not know them.
        example_kwargs: keyword inputs of a live module.
        format: name of the source format, where more than one fits.
        options: options of that format, e.g. {"parameters": "last"}.
        inputs: batches to verify on, by ONNX input name; None makes random ones.
        dynamic_shapes: as for torch.export.export; None finds out which axes may vary.
        opset: ONNX opset version of the export.
        exact: verify in float64 too; None does so for small models and in doubtful cases.
        report: also write the report as JSON to this path.
        gated_output: also write the exported gated model, to measure against (`l0runtime bench`).
        align: pad survivors up with dead channels, which is exact: "auto" to the widths that measure fastest, if that
            makes the model faster; a number to its multiples; "none" not at all.
        align_for: where "auto", and `measure`, measure; None for one CPU thread and single examples.
        measure: time each block that runs for some inputs only, at single examples, and leave unconditional what does
            not pay.
        progress: called with the name of each stage as it begins.
    Raises:
        VerificationError: gated and compact disagree; nothing is written.
        NoGateError: nothing in the model is gated or exactly zero.
        ModelFileError, UnsupportedModelError, InputError, OptionError: see their messages.
    """
    output, watch = Path(output), Stopwatch(progress)
    align = check_align(align)
    _check_outputs(source, output, gated_output)
    with staging_folder(output, source) as folder, _modes_restored(source):
        with watch("load"):
            settings = SourceOptions(model, example_inputs, options or {})
            gated = _load(source, settings, example_kwargs, format)
        with watch("export"):
            gated_path, exported = _as_onnx(gated, folder / GATED, dynamic_shapes, opset)
        with watch("compact"):
            widths = _widths_of(align)
            compaction, settled = _compact(gated_path, gated, widths)
            compact_path = save_model(compaction.model, folder / output.name)
        with watch("verify"):
            verification = _verify(gated_path, compact_path, inputs, exported, exact, widths)
        notes: tuple[str, ...] = ()
        if align == "auto":
            with watch("align"):
                padded = pad_if_faster(
                    gated_path, compact_path, folder / "padded", verification.shapes, align_for or Target()
                )
                notes = (padded.note,)
                if padded.compaction is not None and padded.path is not None:
                    verification = _verify(gated_path, padded.path, inputs, exported, exact, padded.widths)
                    compaction = padded.compaction
                    replace_model(compact_path, padded.path)
        with watch("report"):
            notes += tuple(one.note() for one in settled)
            result = make_report(
                source, gated, exported, gated_path, compact_path, compaction.plan, verification, notes
            )
        if _is_conditional(compact_path):
            with watch("conditional"):
                where = (align_for or Target()) if measure else None
                result = _make_conditional(result, compact_path, folder, inputs, exported, where)
        append_metadata(compact_path, result.metadata())
        result = watch.complete(result, output)
        write_report(result, folder)
        publish(folder, output, report, gated_output)
    return result


def _check_outputs(source: object, output: Path, gated_output: str | Path | None) -> None:
    if gated_output is None:
        return
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".onnx":
        raise OptionError(f"{source}: is the gated model itself; leave out the gated output.")
    if Path(gated_output).absolute() == output.absolute():
        raise OptionError(f"{output}: the gated and the compact model need two paths.")


def _load(
    source: str | Path | Module, settings: SourceOptions, kwargs: Mapping[str, Any] | None, format: str | None
) -> GatedModel:
    if isinstance(source, str | Path):
        if kwargs:
            raise OptionError(f"{source}: example_kwargs are for a live module; give example_inputs in order.")
        return load_source(source, settings, format)
    from converters.live_module import from_module

    unused = {"model": settings.model, "format": format, "options": settings.extra}
    for name, value in unused.items():
        if value:
            raise OptionError(f"{type(source).__name__}: a live module takes no {name}; leave it out.")
    return from_module(source, settings.example_inputs, example_kwargs=kwargs)


def _as_onnx(gated: GatedModel, path: Path, dynamic_shapes: Any, opset: int | None) -> tuple[Path, Exported | None]:
    """The gated model as an ONNX file: an ONNX source as it is, anything else exported to `path`."""
    if gated.onnx_path is not None:
        if dynamic_shapes is not None or opset is not None:
            given = "dynamic_shapes" if dynamic_shapes is not None else "opset"
            raise OptionError(f"{gated.onnx_path}: an ONNX file is not exported again; leave out {given}.")
        return gated.onnx_path, None
    from converters.export import export

    exported = export(gated, dynamic_shapes=dynamic_shapes, opset=opset)
    return save_model(exported.model, path), exported


def _widths_of(align: Align) -> Widths | None:
    if not isinstance(align, int):
        return None
    from converters.width_policies import Multiple

    return Multiple(align)


def _compact(path: Path, gated: GatedModel, widths: Widths | None) -> tuple[Compaction, tuple[Settled, ...]]:
    import onnx_ir as ir

    from converters.compaction import compact
    from converters.conditional import has_conditional_blocks, settle_gates

    model = ir.load(str(path))
    _refuse_nan(model, path)
    settled = settle_gates(model)
    compaction = compact(model, widths)
    is_gated = gated.gates or compaction.plan.removed or compaction.plan.kept
    if not (is_gated or settled or has_conditional_blocks(compaction.model)):
        raise NoGateError(
            f"{gated.onnx_path or gated.format}: no gate in the model is closed and no channel is exactly zero, so "
            "nothing can be removed. Train it with gates (l0runtime.gates), or set pruned weights to exact zeros."
        )
    return compaction, settled


def _is_conditional(path: Path) -> bool:
    import onnx_ir as ir

    from converters.conditional import has_conditional_blocks

    return has_conditional_blocks(ir.load(str(path)))


def _make_conditional(
    report: Report,
    path: Path,
    folder: Path,
    inputs: Sequence[Mapping[str, Array]] | None,
    exported: Exported | None,
    measure: Target | None,
) -> Report:
    """Blocks that run for some inputs only become branches; the report says which."""
    from converters.conditional import make_conditional
    from converters.report_making import cost_of

    example = None if exported is None else exported.example_inputs
    shapes = report.verification.shapes
    masked = cost_of(path, shapes)
    stage = make_conditional(path, folder, shapes, inputs, example=example, measure=measure)
    if stage is None:
        return report
    after = replace(masked, file_bytes=cost_of(path, shapes).file_bytes)
    return replace(report, after=after, conditional=stage.model, notes=(*report.notes, *stage.notes))


def _refuse_nan(model: ir.Model, path: Path) -> None:
    import numpy as np

    for graph in [model.graph, *model.graph.subgraphs()]:
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or not tensor.size:
                continue
            array = tensor.numpy()
            if np.isnan(array.min()):  # the minimum of anything and NaN is NaN, without a mask in memory
                raise UnsupportedModelError(
                    f"{name}: {int(np.isnan(array).sum())} of {array.size} values are NaN; expected finite numbers. "
                    "The training diverged or the file is damaged; take an earlier checkpoint."
                )


def _verify(
    gated: Path,
    compact: Path,
    inputs: Sequence[Mapping[str, Array]] | None,
    exported: Exported | None,
    exact: bool | None,
    widths: Widths | None,
) -> Verification:
    from converters.verification import verify

    if exported is None:
        return verify(gated, compact, inputs, exact=exact, widths=widths)
    return verify(
        gated,
        compact,
        inputs,
        example=exported.example_inputs,
        reference=exported.runner,
        reference64=exported.runner.doubled,
        exact=exact,
        widths=widths,
    )


@contextmanager
def _modes_restored(source: str | Path | Module) -> Iterator[None]:
    """Conversion switches a live module to eval mode; its owner gets it back as it was."""
    if isinstance(source, str | Path):
        yield
        return
    modes = [(module, module.training) for module in source.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
