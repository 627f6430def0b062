"""The stage of a conversion that turns masked blocks into branches: outline, check on every path, describe."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from converters.alignment import Target
from converters.batches import make_batches
from converters.conditional.checking import check_conditional
from converters.conditional.describe import describe, is_too_small, work_below
from converters.conditional.measure import Pay, measure_blocks
from converters.conditional.outline import OLDEST_OPSET, Outlined, outline
from converters.conditional.regions import find_regions
from converters.output_files import save_model
from l0runtime.conditional import ConditionalModel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ConditionalStage:
    """What the stage did.

    Args:
        model: the blocks that became branches, None if measuring left all of them masked.
        difference: masked against conditional on every path, the largest, of the output's scale.
        notes: for the report: what each block costs, which are too small, which mix samples, which stayed masked.
    """

    model: ConditionalModel | None
    difference: float
    notes: tuple[str, ...]


def has_conditional_blocks(model: ir.Model) -> bool:
    """Whether some part of a model is computed only to be multiplied by, or selected by, one number per sample."""
    return model.graph.opset_imports.get("", 0) >= OLDEST_OPSET and bool(find_regions(model.graph))


def make_conditional(
    masked: Path,
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Sequence[Mapping[str, Array]] | None = None,
    *,
    example: Mapping[str, Array] | None = None,
    measure: Target | None = None,
) -> ConditionalStage | None:
    """Replace a masked, compact file by its conditional form; None, and the file as it is, where no block can be.

    Args:
        masked: the file, in a staging folder; it is replaced once the check has passed.
        folder: for intermediate files.
        shapes: input shapes of one example.
        inputs, example: to check on, as for `verify`.
        measure: time every block there, and leave masked those that a branch does not make faster; None: no block.
    Raises:
        VerificationError: masked and conditional disagree.
    """
    if not has_conditional_blocks(ir.load(str(masked))):
        return None
    pays: tuple[Pay, ...] = ()
    if measure is not None:
        pays = measure_blocks(masked, folder, shapes, device=measure.device, threads=measure.threads)
    slow = {pay.name for pay in pays if not pay.is_worth_it}
    model = ir.load(str(masked))
    outlined = outline(model, keep_masked=slow)
    notes = [pay.note() for pay in pays]
    if not outlined:
        return ConditionalStage(None, 0.0, tuple(notes)) if notes else None
    (folder / "conditional").mkdir()
    path = save_model(model, folder / "conditional" / masked.name)
    described = describe(masked, outlined, shapes)
    batches = make_batches(masked, inputs, example=example)
    difference = check_conditional(masked, path, described, batches, folder)
    for file in path.parent.iterdir():
        shutil.move(file, masked.with_name(file.name))
    notes = [*notes, *_notes(described, outlined, measured=measure is not None)]
    notes.append(f"masked against conditional on every path: {difference:.1e} of the output's scale")
    return ConditionalStage(described, difference, tuple(notes))


def _notes(model: ConditionalModel, outlined: Sequence[Outlined], *, measured: bool) -> list[str]:
    notes = []
    for position, (block, made) in enumerate(zip(model.blocks, outlined, strict=True)):
        saved = work_below(model, position)
        text = f"{block.name}: conditional, {saved:,} MACs that its gate ({block.gate_macs:,} MACs) can save"
        if made.form == "batch":
            text += f"; the whole batch runs as soon as one sample needs it, as {made.reason}"
        if not measured and is_too_small(model, position):
            text += "; too small to pay for its gate and a branch on a CPU, --measure would leave it unconditional"
        notes.append(text)
    return notes
