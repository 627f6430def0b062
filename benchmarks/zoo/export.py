"""How does a model of the zoo become ONNX once, and gated ONNX as often as there are scenarios?

torch.onnx.export is the expensive part, so each model is exported once, unoptimised: initializers then still carry the
names of the parameters. A scenario replaces initializers and runs the same optimizer that torch.onnx.export runs.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from benchmarks.zoo.catalogue import Entry

OPSET = 20


class ExportError(Exception):
    """torch.onnx.export cannot export the model; the message is the exporter's."""


@dataclass(frozen=True)
class Exported:
    """An unoptimised export on disk."""

    path: str
    export_seconds: float  # without optimisation
    dynamic: bool  # whether the batch size is free


def export(entry: Entry, model: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> Exported:
    """Export `model`, or find the earlier export in `folder`.

    Raises:
        ExportError: with a dynamic and with a fixed batch size.
    """
    record = folder / "export.json"
    if record.exists():
        earlier = Exported(**json.loads(record.read_text()))
        if _is_of(earlier, model):
            return earlier
    folder.mkdir(parents=True, exist_ok=True)
    failures = []
    names: dict[str, torch.export.Dim] = {}
    dynamic = tuple(
        {axis: names.setdefault(name, torch.export.Dim(name)) for axis, name in axes.items()} for axes in entry.dynamic
    )
    for is_dynamic in (True, False):
        started = time.process_time()
        # transformers take their tensors through *inputs, whose one dynamic-shape entry is a tuple
        shapes = (dynamic,) if entry.name.startswith("transformers/") else dynamic
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    model,
                    inputs,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                    opset_version=OPSET,
                    dynamic_shapes=shapes if is_dynamic else None,
                    input_names=[f"input_{i}" for i in range(len(inputs))],
                )
        except Exception as error:  # whatever the exporter raises is the finding
            failures.append(f"{'dynamic' if is_dynamic else 'fixed'} batch: {_last_line(error)}")
            continue
        seconds = time.process_time() - started
        assert program is not None
        path = folder / "raw.onnx"
        program.save(str(path), external_data=True)
        exported = Exported(str(path), seconds, is_dynamic)
        record.write_text(json.dumps(asdict(exported)))
        return exported
    raise ExportError("; ".join(failures))


def _is_of(exported: Exported, model: nn.Module) -> bool:
    """Whether the export was made from a model with these parameters and buffers (names with a dot are theirs)."""
    names = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    return all(name in names for name in ir.load(exported.path).graph.initializers if "." in name)


def _last_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"[:300]


def gated_model(exported: Exported, values: Mapping[str, Tensor], aliases: Mapping[str, list[str]]) -> ir.Model:
    """The export with new values for some parameters, still unoptimised.

    Args:
        values: parameter name -> new value.
        aliases: parameter name -> all names of the same (tied) parameter.
    Raises:
        ExportError: the exporter did not keep a parameter under its name.
    """
    model = ir.load(exported.path)
    for name, value in values.items():
        found = [n for n in aliases.get(name, [name]) if n in model.graph.initializers]
        if not found:
            raise ExportError(f"parameter {name} is no initializer of the export")
        for alias in found:
            old = model.graph.initializers[alias]
            array = np.ascontiguousarray(value.detach().numpy())
            assert old.shape is not None
            assert tuple(old.shape) == array.shape
            old.const_value = ir.tensor(array, name=alias)
    return model


def optimise(model: ir.Model) -> float:
    """Run the exporter's optimizer in place; seconds."""
    import onnxscript.optimizer

    started = time.process_time()
    onnxscript.optimizer.optimize(model)
    return time.process_time() - started
