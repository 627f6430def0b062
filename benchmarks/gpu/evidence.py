"""All evidence that needs a GPU, in one call of at most ten minutes.

    python -m benchmarks.gpu.evidence --out benchmarks/gpu/result.json

Needs torch for CUDA 13, onnxruntime-gpu, torchvision and transformers; prints what is missing otherwise, and measures
nothing. `--dry` runs a small part of everything on the CPU, to try the script; its figures are worth nothing and are
marked so. Results are written after every case. Every section has a share of the time, so that a slow one does not
leave none for those behind it; what no time was left for is listed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.pieces import missing_pieces
from benchmarks.gpu.table import write_table
from l0runtime.machine import describe_machine


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        dry: on the CPU, small.
        device: of every session.
        networks: keys of benchmarks.native_width.networks.NETWORKS.
        closed: shares of closed gates.
        batches: batch sizes.
        channels: widths of the alignment sweep.
        searched: widths at which layouts and algorithm searches are compared.
        image: height and width of the sweep's images.
        compiled: networks for which torch.compile is tried.
        blocks: channels and height and width of the residual blocks that a gate skips.
        seconds: to time one way of one case.
        limit_seconds: for everything.
    """

    dry: bool
    device: str
    networks: tuple[str, ...]
    closed: tuple[float, ...]
    batches: tuple[int, ...]
    channels: tuple[int, ...]
    searched: tuple[int, ...]
    image: int
    compiled: tuple[str, ...]
    blocks: tuple[tuple[int, int], ...]
    seconds: float
    limit_seconds: float


FULL = Settings(
    dry=False,
    device="cuda",
    networks=("LeNet-300-100", "LeNet-5", "WRN-28-10", "ResNet-50", "ViT-B", "BERT-base"),
    closed=(0.5, 0.7, 0.3),
    batches=(1, 8, 32, 128, 256),
    channels=tuple(range(48, 73)),
    searched=(48, 56, 60, 63, 64, 72),
    image=56,
    compiled=("ResNet-50", "ViT-B"),
    blocks=((16, 16), (16, 32), (64, 32), (64, 56), (128, 56), (256, 56), (512, 28)),
    seconds=0.15,
    limit_seconds=510.0,  # the last case may go on for a while
)
DRY = Settings(
    dry=True,
    device="cpu",
    networks=("LeNet-5",),
    closed=(0.5,),
    batches=(1, 2),
    channels=(7, 8),
    searched=(8,),
    image=6,
    compiled=("LeNet-5",),
    blocks=((4, 4),),
    seconds=0.001,
    limit_seconds=120.0,
)


# section of cases.py to the share of the time after which no case of it begins; what it leaves, the next ones have
SECTIONS = {
    "correctness": 0.3,  # exports and compacts every model, which the sections behind it then find
    "sweep": 0.42,
    "speed_ups": 0.72,
    "graphs": 0.8,
    "native": 0.92,
    "compiled": 0.95,
    "conditional": 1.0,
}


@dataclass
class Evidence:
    """Rows so far, by section, written to a file after each.

    Args:
        out: the JSON file.
        settings: of the run.
    """

    out: Path
    settings: Settings
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def measure(self, section: str, case: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
        """Run one case unless the section's time is up; an error is a row too."""
        name = " ".join([section, *map(str, case.values())])
        if time.perf_counter() - self.started > self.settings.limit_seconds * SECTIONS[section]:
            self.left_out.append(name)
            return
        begin = time.perf_counter()
        try:
            row = case | run()
        except Exception as error:  # one case that fails must not cost the others
            row = case | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        self.rows.setdefault(section, []).append(row | {"row_seconds": round(time.perf_counter() - begin, 2)})
        print(f"{time.perf_counter() - self.started:6.1f} s  {name}  {row.get('error', '')}", file=sys.stderr)
        self.write()

    @property
    def errors(self) -> int:
        return sum("error" in row for rows in self.rows.values() for row in rows)

    @property
    def wrong(self) -> int:
        """Rows whose outputs differ by more than their limit."""
        return sum(row.get("same") is False for rows in self.rows.values() for row in rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": "dry run on the CPU: these figures mean nothing" if self.settings.dry else "measured on a GPU",
            "device": self.settings.device,
            "machine": describe_machine(),
            "seconds": round(time.perf_counter() - self.started, 1),
            "errors": self.errors,
            "wrong": self.wrong,
            "left_out": self.left_out,
            "sections": self.rows,
        }

    def write(self) -> None:
        temporary = self.out.with_name(f".{self.out.name}.part")
        temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        temporary.replace(self.out)


def gather(settings: Settings, out: Path, folder: Path) -> Evidence:
    """Measure everything, the most telling first."""
    from benchmarks.gpu import cases, conditional

    evidence = Evidence(out, settings)
    sections = {name: getattr(cases, name, conditional.skipping) for name in SECTIONS}
    for section in sections.values():
        section(evidence, settings, folder)
    evidence.write()
    return evidence


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; a table goes beside it as .md")
    parser.add_argument("--dry", action="store_true", help="a small part on the CPU, to try the script")
    parser.add_argument("--folder", type=Path, help="keep the ONNX files here (several GB)")
    options = parser.parse_args(arguments)
    if not options.dry and (missing := missing_pieces()):
        print("nothing was measured, because this is missing:", *missing, sep="\n  ", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        evidence = gather(DRY if options.dry else FULL, options.out, folder)
    table = write_table(evidence.to_dict())
    options.out.with_suffix(".md").write_text(table)
    print(table)
    return 1 if evidence.errors or evidence.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
