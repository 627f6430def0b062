"""Do random graphs, gated at random, keep their function? The oracle in float64 is the judge.

L0RUNTIME_FUZZ_EXAMPLES=20000 pytest tests/test_property_random_graphs.py runs long, with new random programs each time.
"""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir
import pytest
import random_graphs
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from judge import FLOAT64_LIMIT, run_onnxruntime
from oracle import evaluate, relative_difference, upcast
from random_graphs import Step
from random_rare import RARE_IMAGE, RARE_SEQUENCE

from converters.compaction import compact, selection, trials

EXAMPLES = int(os.environ.get("L0RUNTIME_FUZZ_EXAMPLES", "0"))
BOUNDED = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,  # the same programs in every bounded run, so that it never fails by chance
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # the explain phase doubles the time of a failure
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def programs(operations: list[str]) -> st.SearchStrategy[list[Step]]:
    # a, b and c are the digits of one number: hypothesis deletes at most five choices of a list at once.
    numbers = st.tuples(st.sampled_from(operations), st.integers(0, 12**3 - 1), st.integers(0, 2**12 - 1))
    step = numbers.map(lambda t: Step(t[0], t[1] % 12, t[1] // 12 % 12, t[1] // 144, t[2]))
    return st.lists(step, min_size=1, max_size=9)


def inputs(model: onnx.ModelProto, seed: int, batch: int, rows: int) -> dict[str, np.ndarray]:
    dims = [d.dim_value or {"N": batch, "S": rows, "H": rows + 2, "W": rows + 4}[d.dim_param]
            for d in model.graph.input[0].type.tensor_type.shape.dim]  # fmt: skip
    return {"x": np.random.default_rng(seed).normal(size=dims).astype(np.float32)}


def keeps_its_function(model: onnx.ModelProto) -> None:
    note(onnx.printer.to_text(model))
    twin = upcast(model)
    feeds = [inputs(model, 1, 1, 3), inputs(model, 2, 2, 5)]
    before = [evaluate(twin, feed) for feed in feeds]
    # Programs that multiply without end overflow; one that squares itself away has no scale to be judged by.
    assume(all(np.isfinite(y).all() and (y == 0).all() | (1e-6 < np.abs(y).max() < 1e6) for out in before for y in out))
    result = compact(onnx_ir.from_proto(twin))
    after = onnx_ir.to_proto(result.model)
    note(onnx.printer.to_text(after))
    onnx.checker.check_model(after, full_check=True)
    for expected, feed in zip(before, feeds, strict=True):
        assert relative_difference(expected, evaluate(after, feed)) <= FLOAT64_LIMIT
    narrow = onnx_ir.to_proto(compact(onnx_ir.from_proto(model)).model)
    for expected, found in zip(before[1], run_onnxruntime(narrow, feeds[1]), strict=True):
        assert found.dtype == np.float32
        assert found.shape == expected.shape


@BOUNDED
@given(programs([*random_graphs.IMAGE, *RARE_IMAGE]), st.integers(0, 255), st.booleans())
def test_random_image_graphs_keep_their_function(program: list[Step], seed: int, static: bool) -> None:
    keeps_its_function(random_graphs.build(4, program, seed, static))


@BOUNDED
@given(programs([*random_graphs.SEQUENCE, *RARE_SEQUENCE]), st.integers(0, 255))
def test_random_sequence_graphs_keep_their_function(program: list[Step], seed: int) -> None:
    keeps_its_function(random_graphs.build(3, program, seed))


@BOUNDED
@given(programs(["conv", "gate", "offset", "pair", "activation", "batch_norm"]), st.integers(0, 255), st.booleans())
def test_random_convolutions_keep_their_function_where_every_gather_seems_to_pay(
    program: list[Step], seed: int, static: bool
) -> None:
    # small graphs hardly save what a Gather costs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "gathers_pay", lambda macs, weights, gathers: True)
        patch.setattr(selection, "gathers_pay", lambda macs, weights, gathers: True)
        keeps_its_function(random_graphs.build(4, program, seed, static))


@pytest.mark.parametrize("rank", [3, 4])
def test_every_operation_of_the_generator_builds_a_valid_graph(rank: int) -> None:
    for op in {**random_graphs.IMAGE, **RARE_IMAGE} if rank == 4 else {**random_graphs.SEQUENCE, **RARE_SEQUENCE}:
        for variant in range(12):
            program = [Step("gate", 0, 0, 0, 5), Step(op, 0, variant, variant, 3), Step(op, 1, 1, variant, 0)]
            model = random_graphs.build(rank, program, seed=variant, static=variant % 2 == 0)
            onnx.checker.check_model(model, full_check=True)
            feed = inputs(model, 0, 2, 5)
            assert relative_difference(evaluate(model, feed), run_onnxruntime(model, feed)) < 1e-4
