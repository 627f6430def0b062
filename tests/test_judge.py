"""Does the judge reject what it must: wrong weights, wrong borders, changed interfaces, randomness, waste?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from cases import CASES
from judge import CHECKS, Judgement, count_weights
from onnx import numpy_helper

PADDED = "conv_gate_norm_relu_padded_conv"
UNPADDED = "conv_gate_norm_relu_unpadded_conv"


def compaction(
    change: Callable[[onnx.ModelProto], Any], removed: tuple[Any, ...] = ()
) -> Callable[[onnx_ir.Model], Any]:
    """A stand-in for `compact` that applies `change` to the protobuf."""

    def compact(model: onnx_ir.Model) -> Any:
        proto = onnx_ir.to_proto(model)
        del proto.graph.value_info[:]  # onnx_ir records the old shapes of the initializers there
        change(proto)
        return SimpleNamespace(model=onnx_ir.from_proto(proto), plan=SimpleNamespace(removed=removed))

    return compact


def replace(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for t in proto.graph.initializer:
        if t.name == name:
            t.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(t)), name))


def array(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def verdict(name: str, compact: Callable[[onnx_ir.Model], Any]) -> set[str]:
    """Names of the checks that object."""
    judged = Judgement(CASES[name], compact)
    return {check for check in CHECKS if getattr(judged, check)() is not None}


identity = compaction(lambda proto: None)


@pytest.mark.parametrize("name", [PADDED, "gemm_gate_sigmoid_gemm", "attention_with_closed_value_heads"])
def test_doing_nothing_is_exact_but_removes_nothing(name: str) -> None:
    assert verdict(name, identity) == {"removed"}


def test_doing_nothing_is_right_where_nothing_can_go() -> None:
    assert verdict("softmax_over_the_gated_axis", identity) == set()


@pytest.mark.parametrize("name", [PADDED, "gemm_gate_sigmoid_gemm"])
def test_one_weight_wrong_by_a_thousandth_is_seen(name: str) -> None:
    def change(proto: onnx.ModelProto) -> None:
        def one(w: np.ndarray) -> np.ndarray:
            w = w.copy()
            w.flat[np.abs(w).argmax()] *= 1.001
            return w

        replace(proto, "w2", one)

    assert {"exact", "rounded", "runs"} <= verdict(name, compaction(change))


LIVE = [0, 2, 3, 5, 7]


def cut(proto: onnx.ModelProto) -> None:
    """Take the closed channels out of the sandwich, whatever they carried; once."""
    if len(array(proto, "b1")) == len(LIVE):
        return
    for name in ("w1", "b1", "gate", "bn_s", "bn_b", "bn_m", "bn_v"):
        replace(proto, name, lambda a: a[LIVE])
    replace(proto, "w2", lambda a: a[:, LIVE])


def fold_into_bias(proto: onnx.ModelProto) -> None:
    """Add what the dead channels' constants give in the middle of the image to the reader's bias, then cut; once."""
    if len(array(proto, "b1")) == len(LIVE):
        return
    s, b, m, v = (array(proto, f"bn_{k}").astype(np.float64) for k in "sbmv")
    constant = np.maximum(b - s * m / np.sqrt(v + 1e-5), 0)
    w2 = array(proto, "w2").astype(np.float64)
    gain = sum(w2[:, k].sum(axis=(1, 2)) * constant[k] for k in (1, 4, 6))
    replace(proto, "b2", lambda a: (a + gain).astype(a.dtype))
    cut(proto)


def test_dead_channels_that_are_constants_may_not_simply_vanish() -> None:
    assert {"exact", "rounded", "runs"} <= verdict(UNPADDED, compaction(cut))


def test_constants_folded_into_the_bias_are_right_without_padding_and_wrong_with_it() -> None:
    # The gate's five values stay in this hand-made compaction, so more weights stay than an engine would leave.
    assert verdict(UNPADDED, compaction(fold_into_bias)) == {"removed"}
    assert {"exact", "rounded", "runs"} <= verdict(PADDED, compaction(fold_into_bias))


def test_another_output_name_is_seen() -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = "z"

    assert "valid" in verdict(PADDED, compaction(change))


def test_another_declared_shape_is_seen() -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    assert "valid" in verdict(PADDED, compaction(change))


def test_shapes_that_do_not_fit_are_seen() -> None:
    def change(proto: onnx.ModelProto) -> None:
        replace(proto, "w2", lambda a: a[:, LIVE])

    assert Judgement(CASES[PADDED], compaction(change)).runs() is not None


def test_other_bytes_at_each_run_are_seen() -> None:
    counter = itertools.count()

    def change(proto: onnx.ModelProto) -> None:
        proto.graph.doc_string = str(next(counter))

    assert "deterministic" in verdict(PADDED, compaction(change))


def test_removal_where_nothing_may_go_is_seen() -> None:
    assert verdict("softmax_over_the_gated_axis", compaction(lambda proto: None, removed=("g",))) == {"removed"}


def test_weights_are_counted_in_constants_and_bodies_too() -> None:
    assert count_weights(CASES["weights_in_constant_nodes"].model()) == 8 * 6 + 8 + 8 + 3 * 8 + 3
    assert count_weights(CASES["gate_as_a_constant_node_of_floats"].model()) == 8 * 6 + 8 + 8 + 3 * 8 + 3
