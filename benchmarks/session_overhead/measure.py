"""Is a Session as fast as onnxruntime's own session, with NumPy and prebound?

    python -m benchmarks.session_overhead.measure --out benchmarks/session_overhead/result.json

Ways to run the same small model, timed in turns: onnxruntime's `run` (twice, as a control), `Session.run` and
`Session(...)`, onnxruntime's prebound `run_with_iobinding`, and `BoundRun.run`. Processor time of one thread, the
faster quarter of many blocks. Bars: `Session.run` at most 1.02 times the raw `run` and what that differs from itself,
`BoundRun.run` faster than the raw `run`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import l0runtime
from l0runtime.machine import describe_machine, load_average

BAR = 1.02
CALLS, ROUNDS = 200, 60
SIZES = {"tiny": (16, 32, 4), "LeNet-300-100": (784, 300, 100, 10)}


def network(widths: tuple[int, ...]) -> bytes:
    """A multilayer perceptron with random weights."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        array = generator.standard_normal((inputs, outputs)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"w{layer}"))
        nodes += [
            helper.make_node("MatMul", [value, f"w{layer}"], [f"h{layer}"]),
            helper.make_node("Relu", [f"h{layer}"], [f"r{layer}"]),
        ]
        value = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", widths[0]])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", widths[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def ways(model: bytes, x: np.ndarray[Any, Any]) -> dict[str, Callable[[], object]]:
    """The same computation, asked for in different ways."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    raw = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session = l0runtime.load(model, device="cpu", threads=1)
    name, feed = raw.get_outputs()[0].name, {"x": x}
    binding = raw.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
    binding.bind_ortvalue_input("x", value)
    binding.bind_output(name, "cpu")
    raw.run_with_iobinding(binding)
    binding.bind_ortvalue_output(name, binding.get_outputs()[0])
    return {
        "raw run": lambda: raw.run([name], feed),
        "raw run again": lambda: raw.run([name], feed),
        "Session.run": lambda: session.run(feed),
        "Session()": lambda: session(x),
        "raw prebound": lambda: raw.run_with_iobinding(binding),
        "BoundRun.run": session.bind(feed).run,
    }


def time_in_turns(runs: dict[str, Callable[[], object]], seed: int) -> dict[str, list[float]]:
    """Microseconds of a call, one for each round; every round takes the ways in another order."""
    order = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for index in order.permutation(len(runs)):
            name = list(runs)[index]
            run = runs[name]
            for _ in range(20):
                run()
            begin = time.thread_time_ns()
            for _ in range(CALLS):
                run()
            times[name].append((time.thread_time_ns() - begin) / CALLS / 1e3)
    return times


def measure(name: str, batch: int) -> dict[str, Any]:
    """One model at one batch size."""
    widths = SIZES[name]
    x = np.random.default_rng(1).standard_normal((batch, widths[0])).astype(np.float32)
    times = time_in_turns(ways(network(widths), x), seed=batch)
    raw = np.array(times["raw run"])
    # disturbances only add time, so the faster quarter of the rounds speaks
    fast = {way: float(np.quantile(values, 0.25)) for way, values in times.items()}
    ratios = {way: value / fast["raw run"] for way, value in fast.items()}
    noise = max(ratios["raw run again"], 1 / ratios["raw run again"])
    return {
        "model": name,
        "batch": batch,
        "microseconds": fast,
        "ratios_to_raw_run": ratios,
        "spread_of_raw_run": [float(np.quantile(raw, q)) for q in (0.1, 0.9)],
        "numpy_met": ratios["Session.run"] <= BAR * noise,
        "prebound_met": ratios["BoundRun.run"] < 1,
        "load_average": load_average(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [measure(name, batch) for name in SIZES for batch in (1, 32)]
    met = all(row["numpy_met"] and row["prebound_met"] for row in rows)
    result = {"bar": BAR, "met": met, "machine": describe_machine(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    columns = ["raw run again", "Session.run", "Session()", "raw prebound", "BoundRun.run"]
    print(f"| model | batch | raw run, us | {' | '.join(columns)} |\n|---|---|---|{'---|' * len(columns)}")
    for row in rows:
        ratios = " | ".join(f"{row['ratios_to_raw_run'][column]:.2f}" for column in columns)
        print(f"| {row['model']} | {row['batch']} | {row['microseconds']['raw run']:.1f} | {ratios} |")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
