"""Profiles are read as the profiler wrote them, and the sentences follow from the figures."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

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


def test_a_node_gets_its_median_time_without_the_first_run() -> None:
    gemm = ("fc", "Gemm", [{"float": [2, 8]}, {"float": [8, 5]}], [{"float": [2, 5]}])
    events = [event(gemm[0], duration, *gemm[1:]) for duration in (900.0, 3.0, 1.0, 2.0)]
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
        "conv2 has 63 to 63 channels: alone it is 28% slower than 64 to 64.",
    )


def test_a_penalty_within_noise_is_not_mentioned() -> None:
    penalty = WidthPenalty("conv2", (63, 63), (64, 64), 1.01, 1.0)
    assert not any("conv2" in sentence for sentence in explain([node("a", 1, 1)], [node("a", 1, 1)], [penalty]))


def test_only_convolutions_off_the_block_are_measured() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,8,6,6] x, float[7,8,3,3] w, float[16,7,3,3] v, float[16,16,3,3] u) => (float[N,16,A,B] y) {
        a = Conv (x, w)
        b = Conv (a, v)
        y = Conv <pads=[1,1,1,1]> (b, u)
    }"""
    model = onnx.parser.parse_model(text)
    shapes = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    penalties = width_penalties(model, shapes, device="cpu", threads=1)
    # by work: b has 16 * 2 * 2 * 7 * 9 per item, a has 7 * 4 * 4 * 8 * 9; y is on the block
    assert [(p.name, p.channels) for p in penalties] == [("a", (8, 7)), ("b", (7, 16))]
    assert penalties[0].rounded in {(8, 8), (16, 16)}
    assert penalties[1].rounded in {(8, 16), (16, 16)}
    assert all(p.time_ms > 0 and p.rounded_ms > 0 for p in penalties)


def test_a_real_profile_finds_both_products(wide: Path, narrow: Path) -> None:
    feed = sample_inputs(wide, batch=4)
    compared = compare_profiles(wide, narrow, feed, device="cpu", threads=1)
    assert sum(n.macs for n in compared.baseline) == 4 * (16 * 20_000 + 20_000 * 4)
    assert sum(n.macs for n in compared.candidate) == 4 * (16 * 8 + 8 * 4)
    assert all(0 <= n.roofline_share <= 1 for n in compared.baseline)
    assert compared.peaks.macs_per_second > 1e6
    assert compared.sentences[0].startswith("Multiply-accumulates fell 2500.00 times")
