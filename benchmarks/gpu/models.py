"""Which models are measured, and how is each made from one export of its dense network?

An export takes most of the time, so each network is exported once, not yet optimised: its initializers then still carry
the names of the parameters. For every share of closed gates the closed parameters are replaced and the exporter's
optimizer runs.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.native_width.networks import NETWORKS, close, disturb_norms, narrow
from benchmarks.zoo.export import Exported, gated_model, optimise


def dense_module(name: str) -> nn.Module:
    """The network with random weights, before any gate is closed; the same on every call."""
    torch.manual_seed(0)
    model = NETWORKS[name].build().eval()
    disturb_norms(model, 1)
    return model


def closed_module(name: str, open_share: float) -> nn.Module:
    """The network with closed channels at zero."""
    model = dense_module(name)
    close(model, NETWORKS[name].units(model), open_share, 2)
    return model


def gated_and_compact(name: str, open_share: float, folder: Path) -> tuple[Path, Path]:
    """Files of the gated and of the compact model."""
    import onnx_ir as ir

    from converters.compaction import compact

    stem = folder / f"{name}-{open_share:g}"
    gated, small = (stem.with_name(f"{stem.name}-{kind}.onnx") for kind in ("gated", "compact"))
    if small.exists():
        return gated, small
    exported = _export_once(name, folder)
    before, after = (
        dict(module.named_parameters()) for module in (dense_module(name), closed_module(name, open_share))
    )
    changed = {key: value for key, value in after.items() if not torch.equal(value, before[key])}
    model = gated_model(exported, changed, {})
    optimise(model)
    ir.save(model, gated, external_data=f"{gated.name}.data")
    ir.save(compact(ir.load(str(gated))).model, small, external_data=f"{small.name}.data")
    return gated, small


def native(name: str, open_share: float, folder: Path) -> Path:
    """File of the same architecture built at the surviving widths, with random weights."""
    path = folder / f"{name}-{open_share:g}-native.onnx"
    if not path.exists():
        torch.manual_seed(3)
        model = NETWORKS[name].build().eval()
        narrow(model, NETWORKS[name].units(model), open_share)
        disturb_norms(model, 4)
        _export(model.eval(), name, path, optimized=True)
    return path


def feed_of(name: str, batch: int, inputs: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs by the names that the file gives them."""
    torch.manual_seed(batch)
    tensors = NETWORKS[name].inputs(batch)
    return {key: tensor.numpy() for key, tensor in zip(inputs, tensors, strict=True)}


def conv_chain(channels: int, *, layers: int = 6, image: int = 56) -> bytes:
    """`layers` 3x3 convolutions with ReLU on [N, channels, image, image], all of one width, random weights."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(channels)
    nodes, weights, value = [], [], "x"
    for layer in range(layers):
        array = generator.standard_normal((channels, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{layer}"))
        nodes += [
            helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        value = f"r{layer}"
    shape = ["N", channels, image, image]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _export_once(name: str, folder: Path) -> Exported:
    record = folder / f"{name}.json"
    if record.exists():
        return Exported(**json.loads(record.read_text()))
    path = folder / f"{name}-raw.onnx"
    _export(dense_module(name), name, path, optimized=False)
    exported = Exported(str(path), 0.0, True)
    record.write_text(json.dumps(asdict(exported)))
    return exported


def _export(model: nn.Module, name: str, path: Path, *, optimized: bool) -> None:
    inputs = NETWORKS[name].inputs(2)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            inputs,
            dynamo=True,
            optimize=optimized,
            opset_version=20,
            dynamic_shapes=[{0: batch}] * len(inputs),
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=True)
