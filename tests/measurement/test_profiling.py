"""Profiles are read as the profiler wrote them, and the sentences follow from the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from l0runtime.measurement.profiling import NodeProfile, Peaks, compare_profiles, explain, read_profile
from l0runtime.measurement.widths import WidthPenalty, width_penalties
from l0runtime.sample_inputs import sample_inputs

PEAKS = Peaks(macs_per_second=1e9, bytes_per_second=1e9)


def event(name: str, duration: float, op_type: str, inputs: list[object], outputs: list[object]) -> dict[str, object]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": duration,
        "args": {
            "op_name": op_type,
            "provider": "CPUExecutionProvider",
            "input_type_shape": inputs,
            "output_type_shape": outputs,
            "activation_size": "100",
            "parameter_size": "200",
            "output_size": "300",
        },
    }


def test_a_node_gets_the_time_of_its_fastest_quarter_without_the_first_run() -> None:
    gemm = ("fc", "Gemm", [{"float": [2, 8]}, {"float": [8, 5]}], [{"float": [2, 5]}])
    events = [event(gemm[0], duration, *gemm[1:]) for duration in (0.5, 900.0, 3.0, 1.0, 5.0, 7.0)]
    (node,) = read_profile([{"cat": "Session", "name": "x"}, *events], PEAKS)
    assert (node.name, node.time_us, node.macs, node.bytes) == ("fc", 2.0, 2 * 8 * 5, 600)
    # 600 bytes at 1e9 a second are 0.6 us, more than 80 multiply-accumulates take; of 2 us that is 30 %
    assert node.roofline_share == pytest.approx(0.3)


def test_a_grouped_convolution_counts_its_own_filter_only() -> None:
    inputs = [{"float": [1, 8, 9, 9]}, {"float": [6, 4, 3, 3]}, {}]
    (node,) = read_profile([event("c", 10.0, "FusedConv", inputs, [{"float": [1, 6, 5, 5]}])], PEAKS)
    assert node.macs == 6 * 5 * 5 * 4 * 9


def node(name: str, time_us: float, macs: int, share: float = 0.5) -> NodeProfile:
    return NodeProfile(name, "Conv" if macs else "Relu", "CPUExecutionProvider", time_us, macs, 0, share)


def test_sentences_say_what_limits_the_gain() -> None:
    penalty = WidthPenalty("conv2", (63, 63), (64, 64), 1.28, 1.0)
    sentences = explain([node("a", 80, 1000), node("b", 20, 0)], [node("a", 20, 250), node("b", 20, 0)], [penalty])
    assert sentences == (
        "Multiply-accumulates fell 4.00 times, time inside operators 2.50 times.",
        "Operators without contractions take 50% of the compact model's time (20% before): they shrink with the "
        "number of channels, contractions with its square.",
        "a (Conv) is the slowest node: 50% of the time, at 50% of what this machine can do.",
        "conv2 has 63 channels: 28% slower than 64, measured alone.",
    )


def test_a_penalty_within_noise_is_not_mentioned() -> None:
    penalty = WidthPenalty("conv2", (63, 63), (64, 64), 1.01, 1.0)
    assert not any("conv2" in sentence for sentence in explain([node("a", 1, 1)], [node("a", 1, 1)], [penalty]))


def test_different_widths_of_inputs_and_outputs_are_both_named() -> None:
    penalty = WidthPenalty("conv2", (64, 63), (64, 64), 1.5, 1.0)
    assert penalty.sentence == "conv2 has 64 to 63 channels: 50% slower than 64 to 64, measured alone."


def chain(inputs: int, **filters: tuple[int, ...]) -> onnx.ModelProto:
    """Convolutions without padding on [N, inputs, 6, 6], one after another, by weight name."""
    nodes, value = [], "x"
    for name in filters:
        nodes.append(helper.make_node("Conv", [value, name], [f"{name}_out"], f"node_{name}"))
        value = f"{name}_out"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", inputs, 6, 6])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in filters.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_only_convolutions_off_the_block_are_measured() -> None:
    filters = {"on": (16, 16, 1, 1), "first.weight": (7, 16, 3, 3), "second": (16, 7, 3, 3), "last": (16, 16, 1, 1)}
    penalties = width_penalties(chain(16, **filters), {"x": (2, 16, 6, 6)}, device="cpu", threads=1)
    # by work: "first" has 7 * 4 * 4 * 16 * 9 per item, "second" 16 * 2 * 2 * 7 * 9; the others are on the block
    assert [(p.name, p.channels) for p in penalties] == [("first", (16, 7)), ("node_second", (7, 16))]
    assert penalties[0].rounded in {(16, 8), (16, 16)}
    assert penalties[1].rounded in {(8, 16), (16, 16)}
    assert all(p.time_ms > 0 and p.rounded_ms > 0 for p in penalties)


def test_the_model_s_own_input_is_never_said_to_be_too_narrow() -> None:
    (penalty,) = width_penalties(chain(3, w=(7, 3, 3, 3)), {"x": (2, 3, 6, 6)}, device="cpu", threads=1)
    assert penalty.rounded in {(3, 8), (3, 16)}
    assert width_penalties(chain(3, w=(16, 3, 3, 3)), {"x": (2, 3, 6, 6)}, device="cpu", threads=1) == ()


def test_a_real_profile_finds_both_products(wide: Path, narrow: Path) -> None:
    feed = sample_inputs(wide, batch=4)
    compared = compare_profiles(wide, narrow, feed, device="cpu", threads=1)
    assert sum(n.macs for n in compared.baseline) == 4 * (16 * 20_000 + 20_000 * 4)
    assert sum(n.macs for n in compared.candidate) == 4 * (16 * 8 + 8 * 4)
    assert all(0 <= n.roofline_share <= 1 for n in compared.baseline)
    assert compared.peaks.macs_per_second > 1e6
    assert compared.sentences[0].startswith("Multiply-accumulates fell 2500.00 times")
    assert [n.layer for n in compared.baseline if n.macs] == ["hidden", "out"]
