"""What do the paper's MNIST networks reach when trained here with its settings?

    python benchmarks/paper/train.py --data MNIST_DIR --network lenet-5 --lambdas 10 0.5 0.1 10 --out runs/lenet-5-separate

Writes to --out: records.csv (a line per epoch), snapshot.pt (run the same command again to resume from it), and at the
end model.safetensors (the averaged network, which is what counts) and result.json.
"""  # noqa: E501 - the command stays on one line

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from cost import cost_of
from idx import load_mnist

from l0runtime.gates import (
    EpochRecord,
    LeNet5,
    LeNet300,
    PaperPenalty,
    Trainer,
    TrainingOptions,
    kept_units,
    save,
    write_records,
)

NETWORKS = {"lenet-300-100": LeNet300, "lenet-5": LeNet5}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files, gzipped or not")
    parser.add_argument("--network", choices=sorted(NETWORKS), required=True)
    parser.add_argument(
        "--lambdas", type=float, nargs="+", default=[0.1], help="one, or one per layer; N times the paper's"
    )
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of the penalty's L2 term, divided by N too")
    parser.add_argument("--attached", action="store_true", help="let the L2 term close gates, as in the paper")
    parser.add_argument("--per-batch", action="store_true", help="one gate sample per batch instead of per example")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=5, help="epochs between test errors and snapshots")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # weights behind closed gates decay into denormals, which are slow
    arguments.out.mkdir(parents=True, exist_ok=True)
    mnist = load_mnist(arguments.data)
    train_x, test_x = (
        torch.from_numpy(mnist[name].copy()).unsqueeze(1).float() / 255 for name in ("train_images", "test_images")
    )
    train_y, test_y = (torch.from_numpy(mnist[name].copy()).long() for name in ("train_labels", "test_labels"))

    torch.manual_seed(arguments.seed)
    model = NETWORKS[arguments.network](per_example=not arguments.per_batch)
    model.to(memory_format=torch.channels_last)  # faster convolutions on a CPU
    penalty = PaperPenalty(model, arguments.lambdas, len(train_y), arguments.weight_decay, not arguments.attached)
    trainer = Trainer(model, train_x, train_y, penalty, TrainingOptions(epochs=arguments.epochs, seed=arguments.seed))
    snapshot = arguments.out / "snapshot.pt"
    if snapshot.exists():
        trainer.load_snapshot(snapshot)
        print(f"resumed after epoch {trainer.epoch}", file=sys.stderr)

    def after_epoch(record: EpochRecord) -> None:
        note = ""
        if record.epoch == arguments.epochs or record.epoch % arguments.evaluate_every == 0:
            note = f", test error {100 * trainer.evaluate(test_x, test_y):.2f} %"
            trainer.save_snapshot(snapshot)
        write_records(trainer.records, arguments.out / "records.csv")
        print(
            f"epoch {record.epoch}: loss {record.loss:.4f}, penalty {record.penalty:.4f}, kept {record.kept}, "
            f"{record.seconds:.1f} s{note}",
            file=sys.stderr,
            flush=True,
        )

    trainer.run(after_epoch=after_epoch)
    save(trainer.evaluated_model, arguments.out / "model.safetensors")
    kept = [kept for kept, _ in kept_units(trainer.evaluated_model).values()]
    size = [total for _, total in kept_units(trainer.evaluated_model).values()]
    result = {
        "network": arguments.network,
        "lambdas_times_n": penalty.lambdas,
        "epochs": trainer.epoch,
        "seed": arguments.seed,
        "gate_samples": "per batch" if arguments.per_batch else "per example",
        "weight_decay": arguments.weight_decay,
        "weight_decay_closes_gates": arguments.attached,
        "kept_units": kept,
        "all_units": size,
        "test_error_percent": round(100 * trainer.evaluate(test_x, test_y), 2),
        "parameters": cost_of(arguments.network, kept).parameters,
        "parameters_dense": cost_of(arguments.network, size).parameters,
        "flops": cost_of(arguments.network, kept).flops,
        "flops_dense": cost_of(arguments.network, size).flops,
        "median_epoch_seconds": sorted(r.seconds for r in trainer.records)[len(trainer.records) // 2],
        "torch": torch.__version__,
        "threads": arguments.threads,
    }
    temporary = arguments.out / f".result.json.{os.getpid()}"
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(arguments.out / "result.json")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
