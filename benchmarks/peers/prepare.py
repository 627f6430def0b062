"""How do all tools get the same gated models? Writes, for every case, an ONNX file, the weights, and the dead indices.

python -m benchmarks.peers.prepare work/
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import onnx_ir as ir
import torch

from benchmarks.peers.models import CASES, build
from benchmarks.zoo.catalogue import Entry
from benchmarks.zoo.export import export, gated_model, optimise
from benchmarks.zoo.gating import apply_scenario
from benchmarks.zoo.places import find_places
from benchmarks.zoo.randomise import randomise


def _image(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(batch, 3, 224, 224),)


def prepare(name: str, positions: tuple[str, ...], folder: Path) -> None:
    """Write `<model>.<position>.{onnx,pt,json}` for every position of one model."""
    torch.manual_seed(0)
    model = build(name)
    randomise(model, _image(4), 0)
    inputs = _image(2)
    places = find_places(model, inputs)
    model.requires_grad_(False)
    entry = Entry(f"peers/{name}", lambda: model, _image, ({0: "batch"},))
    exported = export(entry, model, inputs, folder / "exports" / name)
    state = copy.deepcopy(model.state_dict())
    for position in positions:
        model.load_state_dict(state)
        gated = apply_scenario(model, places, inputs, position, 1)
        parameters = dict(model.named_parameters())
        graph = gated_model(exported, {n: parameters[n] for n in gated.changed}, {})
        optimise(graph)
        stem = folder / f"{name}.{position}"
        ir.save(graph, f"{stem}.onnx", external_data=f"{stem.name}.data")
        torch.save(model.state_dict(), f"{stem}.pt")
        residual = position.startswith("residual")
        groups = []
        for group in places.groups:
            if group.residual != residual or (position.endswith("C") and any(r.offset is None for r in group.readers)):
                continue
            dead = _dead_columns(model, group) if position.endswith("C") else _dead_rows(model, group)
            groups.append({"writers": group.writers, "dead": dead})
        Path(f"{stem}.json").write_text(json.dumps({"model": name, "position": position, "groups": groups}))
        print(stem.name, gated.closed, "of", gated.gates, "gates closed", flush=True)


def _dead_rows(model: torch.nn.Module, group: object) -> list[int]:
    weight = model.get_submodule(group.writers[0]).weight  # type: ignore[attr-defined]
    return torch.nonzero(weight.flatten(1).abs().amax(1) == 0).flatten().tolist()


def _dead_columns(model: torch.nn.Module, group: object) -> list[int]:
    reader = group.readers[0]  # type: ignore[attr-defined]
    weight = model.get_submodule(reader.module).weight.transpose(0, 1).flatten(1)
    first = reader.offset * reader.factor
    block = weight[first : first + group.width * reader.factor].reshape(group.width, -1)  # type: ignore[attr-defined]
    return torch.nonzero(block.abs().amax(1) == 0).flatten().tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(CASES))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in options.only.split(","):
        missing = tuple(p for p in CASES[name] if not (options.folder / f"{name}.{p}.json").exists())
        if missing:
            prepare(name, missing, options.folder)


if __name__ == "__main__":
    main()
