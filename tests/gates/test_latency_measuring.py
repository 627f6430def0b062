"""Are the right layers measured, at the right widths, and does a latency target train like any other?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gates.attachable import resnet, transformer
from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates import GateSpec, TargetCost, attach, gates_in, latency_measuring, measure_latency
from l0runtime.gates.attaching import find
from l0runtime.gates.latency_measuring import layer_kind
from l0runtime.measurement import layer_times
from l0runtime.measurement.layer_times import LayerKind


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which a layer takes a nanosecond for each product of its widths, and all else as many again."""

    def time_layer(kind: LayerKind, widths: Sequence[tuple[int, int]], **_: object) -> list[float]:
        return [kind.batch * inside * outside * 1e-6 for inside, outside in widths]

    monkeypatch.setattr(layer_times, "time_layer", time_layer)
    monkeypatch.setattr(latency_measuring, "_whole", lambda *_: [1.0, 1.75])


class Layers(nn.Module):
    """Every kind of layer that a table can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(2, 6, 3, stride=2, padding=1)
        self.same = nn.Conv2d(6, 8, (2, 3), padding="same", dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.fc = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.same(F.relu(self.strided(x))))
        x = self.grouped(F.relu(self.depthwise(x)))
        logits: Tensor = self.out(F.relu(self.fc(x.flatten(2).transpose(1, 2))))
        return logits


def conv(batch: int, space: tuple[int, int], kernel: tuple[int, int], pads: int | tuple[int, ...], groups: int = 1):
    pads = (pads,) * 4 if isinstance(pads, int) else pads
    stride, dilation = (2, 1) if space == (8, 8) else (1, 2) if kernel == (2, 3) else (1, 1)
    attributes = (("dilations", (dilation,) * 2), ("pads", pads), ("strides", (stride,) * 2))
    return LayerKind("Conv", batch, space, kernel, attributes, groups)


def test_every_layer_is_measured_as_what_it_is_with_the_batch_asked_for() -> None:
    found = find(Layers().eval(), (torch.randn(2, 2, 8, 8),))
    kinds = {layer.name: layer_kind(layer, 3, 2) for layer in found.layers}
    assert kinds == {
        "strided": (conv(3, (8, 8), (3, 3), 1), (2, 6)),
        "same": (conv(3, (4, 4), (2, 3), (1, 2, 1, 2)), (6, 8)),
        "depthwise": (conv(3, (4, 4), (3, 3), 0, groups=0), (8, 8)),
        "grouped": (conv(3, (2, 2), (1, 1), 0, groups=2), (8, 4)),
        "fc": (LayerKind("MatMul", 3 * 4), (4, 5)),
        "out": (LayerKind("MatMul", 3 * 4), (5, 3)),
    }


def test_measured_kinds_are_layers_that_onnxruntime_runs() -> None:
    found = find(Layers().eval(), (torch.randn(2, 2, 8, 8),))
    for layer in found.layers:
        kind, widths = layer_kind(layer, 1, 2)
        (time_ms,) = layer_times.time_layer(kind, [widths], device="cpu", threads=1)
        assert time_ms >= 0


@pytest.mark.usefixtures("simulated")
def test_on_a_machine_that_counts_products_the_layers_part_is_as_exact_as_the_grid(tmp_path: Path) -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(kinds=("units", "stream")), inputs)
    table = measure_latency(model, inputs, batch=4, cache=tmp_path)
    # block1.conv1, block2.conv1 and the stream, at widths that are measured: 2 of 4, 4 of 5 and 3 of 6
    widths = torch.tensor([2 / 4, 4 / 5, 3 / 6])
    layers_ms = 4e-6 * (2 * 3 + 2 * 3 * 2 + 2 * 3 * 4 + 3 * 3)
    full_ms = 4e-6 * (2 * 6 + 2 * 6 * 4 + 2 * 6 * 5 + 6 * 3)
    # with twice the batch the rest goes from 1 - full to 1.75 - 2 full
    rest_ms = 1 - full_ms
    growing_ms = 0.75 - full_ms
    assert table.other_ms == pytest.approx(growing_ms, abs=1e-5)
    assert table.fixed_ms == pytest.approx(rest_ms - growing_ms, abs=1e-5)
    kept = layers_ms + table.fixed_ms + table.other_ms * float(table.activations.fraction(widths))
    assert float(table.latency_ms(widths)) == pytest.approx(kept, rel=1e-4)
    assert table.places == tuple(place.name for place in gates.places)
    assert table.total_ms == pytest.approx(1.0, rel=1e-5)


@pytest.mark.usefixtures("simulated")
def test_the_values_written_shrink_with_the_gates(tmp_path: Path) -> None:
    model, inputs = resnet()
    attach(model, GateSpec(kinds=("units", "blocks")), inputs)
    table = measure_latency(model, inputs, cache=tmp_path)
    by_name = dict(zip(table.places, torch.eye(len(table.places)), strict=True))
    whole = torch.ones(len(table.places))
    # conv, norm and ReLU of block1.conv1 write 3 x 4 x 36 values; a block writes conv2 and bn2 as well, 2 x 6 x 36
    stem = 3 * 6 * 36
    tail = 6 * 36 + 6 * 36  # the addition and the ReLU behind it
    everything = stem + 2 * (12 * 36 + tail) + 3 * 36 * (4 + 5) + 6 + 3
    without_units = whole - by_name["block1.conv1"]
    without_block = whole - by_name["block1.bn2.block"]
    assert float(table.activations.fraction(without_units)) == pytest.approx(1 - 3 * 4 * 36 / everything)
    assert float(table.activations.fraction(without_block)) == pytest.approx(1 - (3 * 4 + 12) * 36 / everything)


@pytest.mark.usefixtures("simulated")
def test_a_target_that_the_fixed_part_forbids_is_refused_with_the_reason(tmp_path: Path) -> None:
    model, inputs = resnet()
    attach(model, GateSpec(kinds=("units",)), inputs)
    table = measure_latency(model, inputs, cache=tmp_path)
    lowest = 100 * float(table.fraction(torch.tensor([1 / 4, 1 / 5])))
    ungated = 100 * float(table.fraction(torch.zeros(2)))
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.2, 100, cost=table)
    assert str(caught.value) == (
        f"TargetCost: a target of 20.0 % of the latency cannot be reached; with one unit left at each place "
        f"{lowest:.1f} % stay, {ungated:.1f} % in what no gate acts on. Raise the target or gate more of the network."
    )


def test_a_real_machine_s_table_drives_a_target_to_its_end(tmp_path: Path) -> None:
    model, inputs = transformer()
    gates = attach(model, "auto", inputs)
    output = model(*inputs)
    table = measure_latency(model, inputs, batch=16, cache=tmp_path)
    assert torch.equal(model(*inputs), output)
    assert float(table.fraction(torch.ones(len(gates)))) == pytest.approx(1)
    objective = TargetCost(model, 0.95, 10, cost=table)
    objective().backward()
    assert all(gate.log_alpha.grad is not None for gate in gates)
    objective.settle()
    assert objective.kept() <= 0.95
    assert gates_in(model) is gates  # measuring works on a copy


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(NoGateError) as no_gate:
        measure_latency(nn.Linear(2, 2), torch.zeros(2, 2))
    assert str(no_gate.value) == "measure_latency: Linear has no attached gates; call attach first."
    model, inputs = resnet()
    attach(model, {"fc": "input"})
    with pytest.raises(UnsupportedModelError) as unsupported:
        measure_latency(model, inputs)
    assert str(unsupported.value) == (
        "measure_latency: these gates were attached by layer patterns, so nothing is known of what they save; attach "
        "with a GateSpec and example inputs."
    )
    model, inputs = resnet()
    attach(model, "auto", inputs)
    with pytest.raises(OptionError) as caught:
        measure_latency(model, inputs[0][:1])
    assert str(caught.value) == "measure_latency: expected batch >= 1 and at least 2 examples; found 1 and 1."
