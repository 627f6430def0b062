"""Do a ViT and a Hugging Face BERT with gated heads, neurons and blocks convert exactly, and run faster?

    python -m benchmarks.gates.transformers_models train --folder DIR
    python -m benchmarks.gates.transformers_models measure --folder DIR --result benchmarks/gates/transformers.json

ViT: timm's VisionTransformer from a small config on scikit-learn's digits (1437 training images of 8 x 8 pixels).
BERT: transformers' BertForSequenceClassification from a small config on the same digits as 16 tokens each, the means of
2 x 2 pixels rounded to 17 levels. Both train from scratch with a target of half the multiply-accumulates; the gates may
close heads, neurons and whole blocks. `measure` compares the two files with `l0runtime.bench`. Needs timm and
transformers for `train`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks.zoo.torchvision_operators  # noqa: F401  # before timm, which imports torchvision
import l0runtime
from benchmarks.gates.small_resnet import versions
from converters import convert
from l0runtime.gates import (
    GateSpec,
    TargetCost,
    Trainer,
    TrainingOptions,
    attach,
    error_rate,
    gates_in,
    load_digits,
    report,
    write_records,
)

_TARGET = 0.5
_LEVELS = 17
_BATCHES = (1, 32)


class Logits(nn.Module):
    """A Hugging Face classifier as a function from token numbers to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def vit() -> nn.Module:
    """Patches of 2 x 2 pixels, so 16 tokens; 4 blocks, width 64, 4 heads."""
    import timm

    return timm.models.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4, mlp_ratio=4
    )


def bert() -> nn.Module:
    """4 layers, width 64, 4 heads, levels of grey as tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=_LEVELS,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=16,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Logits(BertForSequenceClassification(config))


def load_tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The digits as token numbers, int64 [N, 16]: means of 2 x 2 pixels, rounded to one of 17 levels."""
    inputs, labels, test_inputs, test_labels = load_digits()
    levels = _LEVELS - 1
    train, test = ((F.avg_pool2d(x, 2).flatten(1) * levels).round().long() for x in (inputs, test_inputs))
    return train, labels, test, test_labels


def train(make: Any, data: tuple[Tensor, ...], epochs: int, gated: bool) -> Trainer:
    inputs, labels, _, _ = data
    torch.manual_seed(0)
    model = make()
    options = TrainingOptions(
        epochs=epochs, batch_size=64, learning_rate=2e-3, gate_learning_rate=0.05, average_decay=0.98
    )
    penalty: Any = lambda: torch.zeros(())  # noqa: E731
    if gated:
        attach(model, GateSpec(kinds=("heads", "units", "blocks")), (inputs[:2],))
        penalty = TargetCost(model, _TARGET, epochs * -(-len(labels) // options.batch_size))
    trainer = Trainer(model, inputs, labels, penalty, options)
    trainer.run()
    return trainer


def train_and_convert(name: str, make: Any, data: tuple[Tensor, ...], epochs: int, folder: Path) -> dict[str, Any]:
    inputs, _, test_inputs, test_labels = data
    begin = time.perf_counter()
    dense = train(make, data, epochs, gated=False).evaluated_model
    trainer = train(make, data, epochs, gated=True)
    gated = trainer.evaluated_model.eval()
    result: dict[str, Any] = {"name": name, "train": len(inputs), "test": len(test_labels), "epochs": epochs}
    result["seconds"] = round(time.perf_counter() - begin, 1)
    result["error_percent_without_gates"] = round(100 * error_rate(dense, test_inputs, test_labels), 2)
    result["error_percent_gated"] = round(100 * error_rate(gated, test_inputs, test_labels), 2)
    gates = gates_in(gated)
    assert gates is not None
    result["kept"] = {line.name: f"{line.kept}/{line.units}" for line in report(gated).lines}
    result["macs_percent_by_gates"] = round(100 * float(gates.costs["macs"].fraction(gates.kept_shares())), 2)
    write_records(trainer.records, folder / f"{name}.csv")
    compact, before = folder / f"{name}.compact.onnx", folder / f"{name}.gated.onnx"
    done = convert(gated, compact, example_inputs=(inputs[:2],), gated_output=before)
    result["difference"] = done.verification.largest
    result["difference_limit"] = done.verification.limit
    logits = np.asarray(l0runtime.load(str(compact), device="cpu")(test_inputs.numpy())).reshape(len(test_labels), -1)
    result["error_percent_compact"] = round(100 * float((logits.argmax(1) != test_labels.numpy()).mean()), 2)
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def measured(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """Cost and speed of both files; at each batch size the speed-up with its interval, and the control's."""
    compact, before = folder / f"{name}.compact.onnx", folder / f"{name}.gated.onnx"
    bounds = {"tokens": _LEVELS} if name == "bert" else None
    found = l0runtime.bench(
        compact, before, batch=_BATCHES, device="cpu", threads=threads, bounds=bounds, footprint=False
    )
    for item in found.results:
        assert not item.uncounted, item.uncounted
    return {
        "macs_percent": round(100 * found.results[0].candidate_macs / found.results[0].baseline_macs, 2),
        "verdict": found.verdict.value,
        "speed_up": {
            str(item.batch): {
                "ratio": round(item.speed_up.estimate, 3),
                "interval": [round(item.speed_up.low, 3), round(item.speed_up.high, 3)],
                "control": [round(item.control.low, 3), round(item.control.high, 3)],
                "gated_ms": round(item.baseline.p50_ms, 4),
                "compact_ms": round(item.candidate.p50_ms, 4),
                "verdict": item.verdict.value,
            }
            for item in found.results
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["train", "measure"])
    parser.add_argument("--folder", type=Path, required=True, help="where the two steps keep the trained models")
    parser.add_argument("--result", type=Path, help="of `measure`: JSON file to write")
    parser.add_argument("--epochs", type=int, nargs=2, default=[30, 30], help="of the ViT and of the BERT")
    parser.add_argument("--only", nargs="+", default=["vit", "bert"], help="which to train; others stay in the folder")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = arguments.folder / "trained.json"
    if arguments.step == "train":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        runs = json.loads(facts.read_text()) if facts.exists() else []
        plan = [("vit", vit, load_digits, arguments.epochs[0]), ("bert", bert, load_tokens, arguments.epochs[1])]
        for name, make, data, epochs in plan:
            if name in arguments.only:
                found = train_and_convert(name, make, data(), epochs, arguments.folder)
                runs = [*(run for run in runs if run["name"] != name), found]
                facts.write_text(json.dumps(runs, indent=1))
        return
    if arguments.result is None:
        parser.error("measure needs --result")
    runs = [run | measured(run["name"], arguments.folder, arguments.threads) for run in json.loads(facts.read_text())]
    document = {"target": _TARGET, "versions": versions(), "runs": runs}
    arguments.result.write_text(json.dumps(document, indent=1) + "\n")
    slow = [run["name"] for run in runs if run["verdict"] != "FASTER"]
    if slow:
        sys.exit(f"not shown to be faster: {', '.join(slow)}")


if __name__ == "__main__":
    main()
