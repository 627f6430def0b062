"""Is the compact model the same function, how small is it, and what did that cost? One model, all scenarios.

    python -m benchmarks.zoo.judge torchvision/resnet18 --results rows.jsonl

Appends one JSON line per scenario. `run.py` starts this for many models, each in a process with limits.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.zoo.catalogue import Entry, catalogue
from benchmarks.zoo.export import Exported, ExportError, export, gated_model, optimise
from benchmarks.zoo.gating import SCENARIOS, NotApplicableError, apply_scenario
from benchmarks.zoo.ideal import NativeCost, native_cost
from benchmarks.zoo.macs import macs_of_run
from benchmarks.zoo.places import Places, find_places
from benchmarks.zoo.randomise import randomise

if TYPE_CHECKING:
    from converters.exactness import Exactness

SEED = 0
_INDEX_OPERATORS = ("Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements")
_SAME_AS_TORCH = 1e-3  # only to prove that the gates reached the file; the exactness bar is the compact model's
_LATENCY_SECONDS = 0.6
_LATENCY_SECONDS_IN_DOUBT = 4.0  # where the first look does not say plainly that the compact model is faster
_FLOAT64_LIMIT = 1e-10
_NEIGHBOURS = 24  # how often inputs are moved by one unit in the last place
_FLOAT64_MACS = 250_000_000  # above that a float64 run in NumPy takes minutes


def judge(name: str, scenarios: Sequence[str], cache: Path, options: argparse.Namespace) -> None:
    """Judge one model and append its rows to `options.results`."""
    entry = catalogue()[name]()
    torch.manual_seed(SEED)
    model = entry.build()
    randomise(model, entry.inputs(4), SEED)
    torch.manual_seed(SEED + 1)
    inputs = entry.inputs(2)
    base: dict[str, Any] = {"model": name, "note": entry.note, "engine": options.engine}
    base["parameters_torch"] = sum(p.numel() for p in model.parameters())
    places = find_places(model, inputs)
    model.requires_grad_(False)
    try:
        exported = export(entry, model, inputs, cache / name.replace("/", "__"))
    except ExportError as error:
        append(options.results, base | {"scenario": "*", "status": "not exported", "reason": str(error)})
        return
    base |= {"export_seconds": round(exported.export_seconds, 2), "dynamic_batch": exported.dynamic}
    # A deep copy keeps the metadata: MNASNet refuses a state dict without its version.
    state = copy.deepcopy(model.state_dict())
    full = native_cost(model, places, inputs)
    compactor = Compactor(options.compaction_timeout)
    for scenario in scenarios:
        model.load_state_dict(state)
        row = base | {"scenario": scenario}
        started = time.perf_counter()
        try:
            row |= judge_scenario(entry, model, places, exported, inputs, scenario, full, compactor, options)
        except NotApplicableError as reason:
            row |= {"status": "not applicable", "reason": str(reason)}
        except ExportError as reason:
            row |= {"status": "not gated", "reason": str(reason)}
        row["row_seconds"] = round(time.perf_counter() - started, 1)
        append(options.results, row)
    compactor.close()


def judge_scenario(
    entry: Entry,
    model: nn.Module,
    places: Places,
    exported: Exported,
    inputs: tuple[Tensor, ...],
    scenario: str,
    full: NativeCost,
    compactor: Compactor,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One scenario: gate, compact in a process of its own, compare, count and time."""
    import onnx_ir as ir

    gated = apply_scenario(model, places, inputs, scenario, SEED + 2)
    ideal = native_cost(model, places, inputs)
    model.requires_grad_(False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    aliases: dict[str, list[str]] = {}
    for name in gated.changed:
        aliases[name] = [n for n, p in parameters.items() if p is parameters[name]]
    graph = gated_model(exported, {n: parameters[n] for n in gated.changed}, aliases)
    optimise_seconds = optimise(graph)
    row: dict[str, Any] = {"gates": gated.gates, "closed": gated.closed, "optimise_seconds": round(optimise_seconds, 2)}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        source, target = f"{folder}/gated.onnx", f"{folder}/compact.onnx"
        ir.save(graph, source, external_data="gated.onnx.data")
        del graph
        before = _session(source)
        with torch.no_grad():
            reference = model(*inputs)
        reference = reference if isinstance(reference, tuple | list) else (reference,)
        outputs = _run(before, inputs)
        row["gated_to_torch"] = _difference([r.numpy() for r in reference], outputs)
        row["depends_on_input"] = float(np.abs(outputs[0] - outputs[0][::-1]).max() / np.abs(outputs[0]).max())
        if not row["gated_to_torch"] <= _SAME_AS_TORCH:
            return row | {"status": "export differs", "reason": "the gated export differs from the gated torch model"}
        compaction = compactor.compact(source, target)
        if "failure" in compaction:
            return row | {"status": "compaction failed", "reason": compaction["failure"][-600:]}
        row |= compaction
        row |= compare_files(entry, exported, source, target, inputs, full, ideal)
        if row.get("index_operators_added", 0) > 0:
            row |= gain_from_gathers(source, target, entry.inputs(1) if exported.dynamic else inputs)
        exact = row["difference_float32"] <= options.limit
        row["status"] = "exact" if exact else "WRONG"
        if not exact and "macs_after" in row:
            row |= rounding_of_gated(entry, exported, source, target, inputs)
            if _is_rounding(row):
                row["status"] = "ill-conditioned"
        if exact and row["speedup_quartiles"][1] < 1:
            row |= with_align_auto(source, target, entry.inputs(1) if exported.dynamic else inputs)
        if row["status"] == "WRONG" and options.keep_wrong:
            kept = Path(options.keep_wrong) / f"{entry.name.replace('/', '__')}.{scenario}"
            kept.mkdir(parents=True, exist_ok=True)
            for file in Path(folder).iterdir():
                (kept / file.name).write_bytes(file.read_bytes())
    return row


class Compactor:
    """A process beside this one, without torch in it, that forks for each compaction."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: subprocess.Popen[str] | None = None

    def compact(self, source: str, target: str) -> dict[str, Any]:
        """What `compact_once.compact_file` says, or {"failure": reason}."""
        if self.process is None:
            command = [sys.executable, str(Path(__file__).with_name("compact_once.py"))]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{source}\t{target}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], self.timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.close()
            return {"failure": "the process ended" if ready else f"no result within {self.timeout:.0f} s"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def compare_files(
    entry: Entry,
    exported: Exported,
    source: str,
    target: str,
    inputs: tuple[Tensor, ...],
    full: NativeCost,
    ideal: NativeCost,
) -> dict[str, Any]:
    """Differences, sizes and latency of a gated and a compact file."""
    from l0runtime.measurement.cost import count_cost

    row: dict[str, Any] = {}
    try:
        before, after = _session(source), _session(target)
    except Exception as error:  # the compact file is at fault: the gated one has run before
        return {"difference_float32": float("inf"), "reason": f"onnxruntime refuses the compact model: {error}"[:500]}
    differences = []
    try:
        for batch in comparison_batches(entry, exported, inputs):
            differences.append(_difference(_run(before, batch), _run(after, batch)))
    except Exception as error:
        return {"difference_float32": float("inf"), "reason": f"onnxruntime fails on the compact model: {error}"[:500]}
    row["difference_float32"] = max(differences) if not any(np.isnan(differences)) else float("inf")

    probe = entry.inputs(1) if exported.dynamic else inputs
    samples = probe[0].shape[0]
    macs = [macs_of_run(path, _feeds(session, probe)) for path, session in ((source, before), (target, after))]
    shapes = {value.name: tuple(x.shape) for value, x in zip(before.get_inputs(), probe, strict=True)}
    parameters_before = count_cost(source, shapes=shapes).parameters
    row |= {"parameters_before": parameters_before, "parameters_after": count_cost(target, shapes=shapes).parameters}
    row |= {"macs_before": macs[0][0] // samples, "macs_after": macs[1][0] // samples}
    row["uncounted"] = [*macs[0][1], *macs[1][1]]
    # attention scores and sums, which have no weights, shrink with the heads
    if full.products is not None and ideal.products is not None:
        products_gone = full.products - ideal.products
    else:
        products_gone = max(0, row["macs_before"] - full.macs) * (1 - ideal.heads_alive)
    row["parameters_ideal"] = parameters_before - (full.parameters - ideal.parameters)
    row["macs_ideal"] = int(row["macs_before"] - (full.macs - ideal.macs) - products_gone)
    row["index_operators_added"] = _index_operators(target) - _index_operators(source)
    row["nodes_before"], row["nodes_after"] = _nodes(source), _nodes(target)
    row |= paired_latency(before, after, probe)
    if row["macs_before"] * samples <= _FLOAT64_MACS:
        # two samples: onnx.reference trips over some operators when the batch is 1
        row |= float64_difference(source, target, inputs)
    return row


def comparison_batches(entry: Entry, exported: Exported, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Batches of 2, where the export allows it 1 and 3, and 2 with inputs three times as large."""
    torch.manual_seed(SEED + 7)
    batches = [inputs]
    if exported.dynamic:
        batches += [entry.inputs(1), entry.inputs(3)]
    return [*batches, tuple(3 * x if x.is_floating_point() else x for x in entry.inputs(2))]


def rounding_of_gated(
    entry: Entry, exported: Exported, source: str, target: str, inputs: tuple[Tensor, ...]
) -> dict[str, Any]:
    """How far are both models from the gated function in float64, and the gated one from itself when rounding changes?

    Rounding changes by running it without onnxruntime's optimisations and by moving every input to the next float32; in
    float64, by moving every input to the next float64. All on the inputs that the compact one was compared on, however
    long that takes.
    """
    plain, fused, compact = _session(source, optimised=False), _session(source), _session(target)
    batches = comparison_batches(entry, exported, inputs)
    expected = [_run(fused, batch) for batch in batches]
    own = []
    for batch, outputs in zip(batches, expected, strict=True):
        own.append(_difference(outputs, _run(plain, batch)))
        own += [_difference(outputs, _run(fused, _next_to(batch, seed))) for seed in range(_NEIGHBOURS)]
    wide = [tuple(x.double() if x.is_floating_point() else x for x in batch) for batch in batches]
    moved = [_next_to(batch, seed) for seed, batch in enumerate(wide)]
    found, verdict = _float64_check(source, target, [*batches, *moved])
    if verdict is not None:
        exact, beside = verdict.gated_outputs[: len(batches)], verdict.gated_outputs[len(batches) :]
        for name, found_outputs in (("gated", expected), ("compact", [_run(compact, batch) for batch in batches])):
            found[f"error_of_{name}"] = max(_difference(e, f) for e, f in zip(exact, found_outputs, strict=True))
        own.append(found["error_of_gated"])
        found["difference_of_gated_itself_float64"] = max(_difference(e, b) for e, b in zip(exact, beside, strict=True))
    return {"difference_of_gated_itself": max(own), **found}


def _next_to(batch: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    """Every number replaced by the next one above or below it, at random; integers stay."""
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for x in batch:
        up = torch.rand(x.shape, generator=generator) < 0.5
        moved.append(torch.nextafter(x, torch.where(up, torch.inf, -torch.inf)) if x.is_floating_point() else x)
    return tuple(moved)


def _is_rounding(row: dict[str, Any]) -> bool:
    """Exact in float64 on the same inputs, and no further from that than rounding takes the gated model.

    Exact is 1e-10, or where the model amplifies even float64's rounding, what one unit in the last place of the inputs
    does to it.
    """
    if row.get("difference_float64") is None:
        return False
    exact = row["difference_float64"] <= max(_FLOAT64_LIMIT, row["difference_of_gated_itself_float64"])
    return bool(exact and row["error_of_compact"] <= row["difference_of_gated_itself"])


def with_align_auto(source: str, target: str, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """The same comparison for `convert --align auto`, which pads survivors to widths that the runtime likes."""
    from converters.alignment import Target, pad_if_faster
    from l0runtime.measurement.cost import count_cost

    before = _session(source)
    shapes = {name: tuple(x.shape) for name, x in _feeds(before, inputs).items()}
    with tempfile.TemporaryDirectory(dir=Path(target).parent) as folder:
        padded = pad_if_faster(
            Path(source), Path(target), Path(folder) / "padded", shapes, Target(batch=len(inputs[0]))
        )
        if padded.path is None:
            return {"align_auto": padded.note}
        after = _session(str(padded.path))
        measured = paired_latency(before, after, inputs)
        return {
            "align_auto": padded.note,
            "align_difference_float32": _difference(_run(before, inputs), _run(after, inputs)),
            "align_parameters": count_cost(padded.path, shapes=shapes).parameters,
            "align_speedup": measured["speedup"],
            "align_speedup_quartiles": measured["speedup_quartiles"],
        }


def gain_from_gathers(source: str, target: str, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """How much faster is the compact model than one compacted without the Gathers that the engine chose to add?"""
    from benchmarks.zoo.compact_once import compact_file

    plain = f"{target}.plain.onnx"
    compact_file(source, plain, gathers=False)
    measured = paired_latency(_session(plain), _session(target), inputs)
    return {
        "index_operators_without_choice": _index_operators(plain) - _index_operators(source),
        "gain_from_gathers": measured["speedup"],
        "gain_from_gathers_quartiles": measured["speedup_quartiles"],
    }


def float64_difference(source: str, target: str, batch: tuple[Tensor, ...]) -> dict[str, Any]:
    """Gated against its twin compacted in float64, and whether the shipped weights are the twin's, rounded."""
    return _float64_check(source, target, [batch])[0]


def _float64_check(
    source: str, target: str, batches: Sequence[tuple[Tensor, ...]]
) -> tuple[dict[str, Any], Exactness | None]:
    import onnx_ir as ir

    from converters.exactness import check_exactly

    names = [value.name or "" for value in ir.load(source).graph.inputs]
    feeds = [{name: x.numpy() for name, x in zip(names, batch, strict=True)} for batch in batches]
    try:
        verdict = check_exactly(source, target, [(f"batch {i}", feed) for i, feed in enumerate(feeds)])
    except Exception as error:
        return {"difference_float64": None, "float64_reason": f"{type(error).__name__}: {error}"[:300]}, None
    if isinstance(verdict, str):
        return {"difference_float64": None, "float64_reason": verdict[:300]}, None
    found = {
        "difference_float64": float(verdict.difference.relative),
        "misrounded": verdict.misrounded,
        "difference_float64_shipped": float(verdict.shipped.relative),
    }
    return found, verdict


def paired_latency(before: Any, after: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Median latencies in ms and median ratio gated / compact of interleaved runs on one thread."""
    feeds = [_feeds(before, inputs), _feeds(after, inputs)]
    for session, feed in zip((before, after), feeds, strict=True):
        session.run(None, feed)
        session.run(None, feed)
    times = _interleaved(before, after, feeds, _LATENCY_SECONDS)
    ratios = sorted(b / a for b, a in times)
    if ratios[len(ratios) // 4] < 1.05:
        times = _interleaved(before, after, feeds, _LATENCY_SECONDS_IN_DOUBT)
        ratios = sorted(b / a for b, a in times)
    return {
        "latency_ms_gated": round(1e3 * statistics.median(b for b, _ in times), 3),
        "latency_ms_compact": round(1e3 * statistics.median(a for _, a in times), 3),
        "speedup": round(statistics.median(ratios), 3),
        "speedup_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
        "latency_pairs": len(times),
    }


def _interleaved(
    before: Any, after: Any, feeds: list[dict[str, np.ndarray]], seconds: float
) -> list[tuple[float, float]]:
    """Seconds of (gated, compact) per pair of runs, in alternating order; at least 5 pairs, at most 400."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 400):
        pair = {}
        for index in (0, 1) if len(times) % 2 == 0 else (1, 0):
            started = time.perf_counter()
            (before, after)[index].run(None, feeds[index])
            pair[index] = time.perf_counter() - started
        times.append((pair[0], pair[1]))
    return times


def _session(path: str, *, optimised: bool = True) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feeds(session: Any, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    return {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}


def _run(session: Any, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    return list(session.run(None, _feeds(session, inputs)))


def _difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest difference relative to each output's largest magnitude; nan and wrong shapes count as infinite."""
    worst = 0.0
    for e, f in zip(expected, found, strict=True):
        if e.shape != f.shape or not np.isfinite(e).all() or not np.isfinite(f).all():
            return float("inf")
        scale = float(np.abs(e).max()) or 1.0
        worst = max(worst, float(np.abs(e.astype(np.float64) - f.astype(np.float64)).max()) / scale)
    return worst


def _index_operators(path: str) -> int:
    """Index operators that run for each request; those over constants alone are folded when a model is loaded."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    found = 0
    for node in graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
        else:
            found += node.op_type in _INDEX_OPERATORS
    return found


def _nodes(path: str) -> int:
    return sum(_operators(path).values())


def _operators(path: str) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def append(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line; infinities become a string so that any reader understands the file."""
    clean = {k: (str(v) if isinstance(v, float) and not np.isfinite(v) else v) for k, v in row.items()}
    with path.open("a") as file:
        file.write(json.dumps(clean) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder of unoptimised exports")
    parser.add_argument("--scratch", default=None, help="folder for temporary models")
    parser.add_argument("--limit", type=float, default=1e-5, help="float32 bar, of the output's scale")
    parser.add_argument("--keep-wrong", default=None, help="folder for models that differ")
    parser.add_argument("--compaction-timeout", type=float, default=600)
    parser.add_argument("--engine", default="", help="revision of the engine, kept in each row")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    judge(options.name, options.scenarios.split(","), options.cache, options)


if __name__ == "__main__":
    main()
