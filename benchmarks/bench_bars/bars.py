"""Can the bench be trusted: how often does it see a difference that is not there, or miss one of 5 %?

Part "load": a model is compared with itself and with one that does 5 % less work, again and again, while other
processes keep every core busy (`--load` starts some; 0 where the machine is busy already, and the load average says how
busy). What "5 %" really is comes from a long measurement. Part "quiet": how long one comparison takes on an idle
machine. Each part goes into the JSON file with every trial, and leaves the other part there as it is. Exit 1 if a bar
is missed.

    python benchmarks/bench_bars/bars.py load --out benchmarks/bench_bars/result.json
    python benchmarks/bench_bars/bars.py quiet --out benchmarks/bench_bars/result.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

import l0runtime
from l0runtime.machine import describe_machine, load_average, usable_cores
from l0runtime.measurement import BenchReport, Verdict
from l0runtime.measurement.paired import BASELINE, CANDIDATE, CONTROL, Plan, clock_for, measure
from l0runtime.session import BoundRun

CHANNELS, LIVE, PIXELS, LAYERS = 32, 16, 16, 2
FALSE_VERDICTS_ALLOWED, MISSES_ALLOWED, SECONDS_ALLOWED = 1, 1, 2.0
QUIET_TRIALS = 5


def network(hidden: int) -> ModelProto:
    """Pairs of 3x3 convolutions through `hidden` channels, of which only the first 16 are not zero: same function."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer in range(LAYERS):
        into = np.zeros((hidden, CHANNELS, 3, 3), np.float32)
        out = np.zeros((CHANNELS, hidden, 3, 3), np.float32)
        into[:LIVE] = generator.standard_normal((LIVE, CHANNELS, 3, 3)) / (9 * CHANNELS) ** 0.5
        out[:, :LIVE] = generator.standard_normal((CHANNELS, LIVE, 3, 3)) / (9 * LIVE) ** 0.5
        weights += [numpy_helper.from_array(into, f"in{layer}"), numpy_helper.from_array(out, f"out{layer}")]
        nodes += [
            helper.make_node("Conv", [value, f"in{layer}"], [f"h{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"h{layer}"], [f"r{layer}"]),
            helper.make_node("Conv", [f"r{layer}", f"out{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]),
        ]
        value = f"y{layer}"
    shape = ["N", CHANNELS, PIXELS, PIXELS]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _spin() -> None:
    values = np.random.default_rng(0).standard_normal((256, 256))
    while True:
        values = np.tanh(values @ values.T / 256)


@contextmanager
def busy_cores(processes: int) -> Iterator[None]:
    """Keep cores busy with arithmetic, by processes of our own."""
    workers = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(2 if workers else 0)
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def true_ratio(baseline: Path, candidate: Path, batch: int) -> float:
    """The ratio of processor times from a long measurement."""
    feed = {"x": np.random.default_rng(1).standard_normal((batch, CHANNELS, PIXELS, PIXELS)).astype(np.float32)}

    def maker(path: Path) -> Callable[[], BoundRun]:
        return lambda: l0runtime.load(path, device="cpu", threads=1).bind(feed)

    makers = {BASELINE: maker(baseline), CANDIDATE: maker(candidate), CONTROL: maker(baseline)}
    samples = measure(makers, budget_seconds=1, clock=clock_for("cpu", 1), plan=Plan(20, 12, 2))
    return float(np.exp(np.median(samples.log_speed_ups())))


Trials = dict[str, list[dict[str, object]]]


def trial(candidate: Path, baseline: Path, seed: int, batch: int, margin: float) -> tuple[BenchReport, float]:
    started = time.perf_counter()
    report = l0runtime.bench(candidate, baseline, batch=batch, device="cpu", margin=margin, seed=seed, footprint=False)
    return report, time.perf_counter() - started


def record(report: BenchReport, seconds: float) -> dict[str, object]:
    (result,) = report.results
    return {
        "verdict": report.verdict.value,
        "speed_up": [result.speed_up.estimate, result.speed_up.low, result.speed_up.high],
        "control": [result.control.estimate, result.control.low, result.control.high],
        "p50_ms": result.baseline.p50_ms,
        "waiting_share": result.samples.waiting_share(),
        "measuring_seconds": result.samples.seconds,
        "seconds": seconds,
    }


def measure_quiet(full: Path, less: Path, batch: int, margin: float) -> dict[str, object]:
    """Seconds of a comparison, everything but Python's imports included."""
    trials = [record(*trial(less, full, seed, batch, margin)) for seed in range(QUIET_TRIALS + 1)][1:]
    seconds = statistics.median(float(str(t["seconds"])) for t in trials)
    return {"seconds": seconds, "seconds_allowed": SECONDS_ALLOWED, "met": seconds <= SECONDS_ALLOWED, "trials": trials}


def measure_under_load(
    full: Path, less: Path, batch: int, margin: float, count: int, load: int, trials: Trials, truth: float | None
) -> dict[str, object]:
    """Verdicts on a model against itself, and on one with 5 % less work, while the cores are busy.

    Args:
        full, less: the models.
        batch, margin: of every comparison.
        count: trials in the end, with those that there are.
        load: busy processes beside them.
        trials: of an earlier call, which this one goes on with.
        truth: the ratio that the earlier call found for 5 % less work; None to measure it.
    """
    truth = true_ratio(full, less, batch) if truth is None else truth
    with busy_cores(load):
        for seed in range(len(trials["itself"]), count):
            for name, candidate in (("itself", full), ("five_percent", less)):
                busy = {"busy_processes": load, "load_average": load_average()}
                trials[name].append(record(*trial(candidate, full, seed, batch, margin)) | busy)
                print(name, seed, trials[name][-1]["verdict"], file=sys.stderr)
    false = sum(t["verdict"] != Verdict.INCONCLUSIVE.value for t in trials["itself"])
    found = sum(t["verdict"] == Verdict.FASTER.value for t in trials["five_percent"])
    every = trials["itself"] + trials["five_percent"]
    return {
        "false_verdicts": false,
        "false_verdicts_allowed": FALSE_VERDICTS_ALLOWED,
        "found": found,
        "found_needed": count - MISSES_ALLOWED,
        "met": false <= FALSE_VERDICTS_ALLOWED and found >= count - MISSES_ALLOWED,
        "true_ratio": truth,
        "median_seconds": statistics.median(float(str(t["seconds"])) for t in every),
        "median_waiting_share": statistics.median(float(str(t["waiting_share"])) for t in every),
        "trials": trials,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("load", "quiet"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--margin", type=float, default=0.01)
    parser.add_argument("--load", type=int, default=usable_cores(), help="busy processes beside the trials")
    parser.add_argument("--go-on", action="store_true", help="keep the trials in the file, make those that lack")
    arguments = parser.parse_args()
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        full, less = Path(folder) / "full.onnx", Path(folder) / "less.onnx"
        save(network(320), full)
        save(network(304), less)  # 5 % fewer hidden channels; both fill the 16-wide blocks of the kernels
        if arguments.part == "quiet":
            part = measure_quiet(full, less, arguments.batch, arguments.margin)
        else:
            count, load = arguments.trials, arguments.load
            before = result["load"] if arguments.go_on else {"trials": {"itself": [], "five_percent": []}}
            part = measure_under_load(
                full,
                less,
                arguments.batch,
                arguments.margin,
                count,
                load,
                before["trials"],
                before.get("true_ratio"),
            )
    conditions = {"batch": arguments.batch, "margin": arguments.margin, "load_average": load_average()}
    part = (
        {name: value for name, value in part.items() if name != "trials"}
        | conditions
        | {
            "machine": describe_machine(),
            "trials": part["trials"],
        }
    )
    result[arguments.part] = part
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in part.items() if name != "trials"}, indent=1))
    return 0 if part["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
