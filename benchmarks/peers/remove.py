"""What does one tool make of the gated models? Run once in each tool's own environment.

    <environment of the tool>/bin/python -m benchmarks.peers.remove TOOL work/

Writes `<case>.<tool>.onnx` where the tool can, and appends what happened to `work/<tool>.jsonl`. Tools: l0runtime,
torch-pruning, openvino, onnxsim. Each is asked for exactly the filters that are zero; what it answers is not repaired.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_PAIRS = 15


def remove_with_l0runtime(stem: Path, target: Path) -> Row:
    """Our own engine."""
    import onnx_ir as ir

    from converters.compaction import compact

    model = ir.load(f"{stem}.onnx")
    started = time.perf_counter()
    result = compact(model)
    seconds = time.perf_counter() - started
    ir.save(result.model, target)
    return {"seconds": seconds}


def remove_with_torch_pruning(stem: Path, target: Path) -> Row:
    """DependencyGraph with the dead indices given by hand, on the torch model; exported afterwards."""
    import torch
    import torch_pruning as tp

    from benchmarks.peers.models import build

    case = json.loads(Path(f"{stem}.json").read_text())
    model = build(case["model"]).eval()
    model.load_state_dict(torch.load(f"{stem}.pt"))
    example = torch.randn(1, 3, 224, 224)
    started = time.perf_counter()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    refused = 0
    for group in case["groups"]:
        module = model.get_submodule(group["writers"][0])
        prune = tp.prune_linear_out_channels if isinstance(module, torch.nn.Linear) else tp.prune_conv_out_channels
        found = graph.get_pruning_group(module, prune, idxs=group["dead"])
        if graph.check_pruning_group(found):
            found.prune()
        else:
            refused += 1
    seconds = time.perf_counter() - started
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.randn(2, 3, 224, 224),), dynamo=True, verbose=False, opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    assert program is not None
    program.save(str(target))
    return {"seconds": seconds, "groups_refused": refused}


def remove_with_onnxsim(stem: Path, target: Path) -> Row:
    """Structured pruning by L2 norm: the zero filters are the half of smallest norm."""
    import onnx
    import onnxsim

    model = onnx.load(f"{stem}.onnx")
    started = time.perf_counter()
    pruned = onnxsim.apply_structured_pruning(model, sparsity=0.5)
    seconds = time.perf_counter() - started
    onnx.save(pruned, target)
    return {"seconds": seconds}


def remove_with_openvino(stem: Path, target: Path) -> Row:
    """The common, then the pruning transformation; its result cannot become ONNX: OpenVINO compares and times."""
    import numpy as np
    import openvino as ov
    from openvino._offline_transformations import apply_moc_transformations, apply_pruning_transformation

    core = ov.Core()
    configuration: Row = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    # without the hint processors with bfloat16 units compute in bfloat16, which hides what the removal changed
    configuration["INFERENCE_PRECISION_HINT"] = "f32"
    gated, pruned = core.read_model(f"{stem}.onnx"), core.read_model(f"{stem}.onnx")
    for model in (gated, pruned):
        model.reshape([1, 3, 224, 224])
        # without the common transformations the bias shapes are computed at run time, and nothing at all is pruned
        apply_moc_transformations(model, cf=True)
    started = time.perf_counter()
    apply_pruning_transformation(pruned)
    seconds = time.perf_counter() - started
    image = np.random.default_rng(3).standard_normal((1, 3, 224, 224)).astype(np.float32)
    compiled = [core.compile_model(m, "CPU", configuration) for m in (gated, pruned)]
    outputs = [c(image)[0] for c in compiled]
    scale = float(np.abs(outputs[0]).max())
    times: list[list[float]] = [[], []]
    for pair in range(_PAIRS):
        for index in (0, 1) if pair % 2 else (1, 0):
            started = time.perf_counter()
            compiled[index](image)
            times[index].append(time.perf_counter() - started)
    floats = ("f32", "float32", "<Type: 'float32'>")

    def parameters(model: Any) -> int:
        constants = [o for o in model.get_ops() if o.get_type_name() == "Constant"]
        return sum(
            int(np.prod(list(o.shape))) for o in constants if str(o.get_element_type()) in floats and len(o.shape)
        )

    return {
        "seconds": seconds,
        "difference": float(np.abs(outputs[0] - outputs[1]).max()) / scale,
        "parameters_before": parameters(gated),
        "parameters_after": parameters(pruned),
        "speedup": statistics.median(g / p for g, p in zip(*times, strict=True)),
        "latency_ms_after": 1e3 * statistics.median(times[1]),
        "latency_in": "openvino",
    }


TOOLS = {
    "l0runtime": remove_with_l0runtime,
    "torch-pruning": remove_with_torch_pruning,
    "onnxsim": remove_with_onnxsim,
    "openvino": remove_with_openvino,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    results = options.folder / f"{options.tool}.jsonl"
    done = {json.loads(line)["case"] for line in results.read_text().splitlines()} if results.exists() else set()
    for description in sorted(options.folder.glob("*.json")):
        case = description.name.removesuffix(".json")
        if case in done:
            continue
        row: Row = {"case": case, "tool": options.tool, "version": version(options.tool)}
        stem = options.folder / case
        try:
            row |= TOOLS[options.tool](stem, options.folder / f"{case}.{options.tool}.onnx")
        except Exception as error:  # what a tool cannot do is the finding
            row["failed"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:300], flush=True)


if __name__ == "__main__":
    main()
