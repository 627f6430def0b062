"""How do a network's three ONNX files come about: gated, compact, and built natively at the surviving widths?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.native_width.networks import NETWORKS, close, disturb_norms, narrow


@dataclass(frozen=True)
class Files:
    """ONNX files with a dynamic batch; gated and compact compute the same, native has other (random) weights."""

    gated: Path
    compact: Path
    native: Path


def prepare(name: str, open_share: float, folder: Path) -> Files:
    """Make the files, or find them as an earlier call left them.

    Args:
        name: a key of NETWORKS.
        open_share: share of the channels (and heads) of every gated layer that stay.
        folder: where the files lie.
    """
    import onnx_ir as ir

    from converters.compaction import compact

    stem = folder / f"{name}-{open_share:g}"
    files = Files(*(stem.with_name(f"{stem.name}-{kind}.onnx") for kind in ("gated", "compact", "native")))
    if files.native.exists():
        return files
    prepare_gated(name, open_share, folder)
    network = NETWORKS[name]
    made = compact(ir.load(str(files.gated)))
    ir.save(made.model, files.compact, external_data=f"{files.compact.name}.data")
    torch.manual_seed(3)
    native = network.build().eval()
    narrow(native, network.units(native), open_share)
    disturb_norms(native, 4)
    _export(native.eval(), network.inputs(2), files.native)
    return files


def prepare_gated(name: str, open_share: float, folder: Path) -> Path:
    """The gated file alone."""
    path = folder / f"{name}-{open_share:g}-gated.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().eval()
    disturb_norms(model, 1)
    close(model, network.units(model), open_share, 2)
    _export(model, network.inputs(2), path)
    return path


def _export(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    import onnx_ir as ir

    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, inputs, dynamo=True, opset_version=20, dynamic_shapes=[{0: batch}] * len(inputs), verbose=False
        )
    assert program is not None
    ir.save(program.model, path, external_data=f"{path.name}.data")
