"""Where does skipping a block pay on a GPU, where every decision is read on the host?

conditional   a residual block of two 3x3 convolutions behind a gate that is driven: masked against skipped, run for
              half of the samples and run for all; a batch of one (If) and of 32 (gather, compute, scatter)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.conditional.single_block import driven, residual
from benchmarks.gpu.timing import Timed, time_ways
from l0runtime.conditional.forcing import forced_inputs
from l0runtime.session import load

if TYPE_CHECKING:
    from benchmarks.gpu.evidence import Evidence, Settings

# of the output's scale: the sub-batch of another size may take another convolution algorithm
LIMIT = 1e-4


def skipping(evidence: Evidence, settings: Settings, folder: Path) -> None:
    """Times and the break-even: the largest share of samples that may run for the branch to pay."""
    for channels, size in settings.blocks:
        for batch in (1, 2) if settings.dry else (1, 32):

            def run(channels: int = channels, size: int = size, batch: int = batch) -> dict[str, Any]:
                shape = (batch, channels, size, size)
                files = driven(residual(channels, size, "1" if batch == 1 else "N"), (1, *shape[1:]), folder)
                # the decision itself is a matter of the host
                masked, branching = (
                    load(file, device=settings.device, allow_cpu_nodes=not settings.dry) for file in files[:2]
                )
                x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
                (gate,) = forced_inputs(files[2]).values()
                share = {
                    "skipped": np.zeros(batch, np.float32),
                    "half": (np.arange(batch) % 2 == 0).astype(np.float32),
                    "run": np.ones(batch, np.float32),
                }
                feeds = {way: {"x": x, gate: values} for way, values in share.items()}
                difference = max(_difference(masked.run(feed), branching.run(feed)) for feed in feeds.values())
                ways: dict[str, Callable[[], object]] = {"masked": masked.bind(feeds["run"]).run}
                for way, feed in feeds.items():
                    if way != "half" or batch > 1:
                        ways[way] = branching.bind(feed).run
                timed = time_ways(ways, seconds=settings.seconds)
                macs = files[2].blocks[0].macs
                return _row(timed, batch) | {
                    "macs": macs,
                    "difference": difference,
                    "limit": LIMIT,
                    "same": difference <= LIMIT,
                }

            evidence.measure("conditional", {"channels": channels, "size": size, "batch": batch}, run)


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> float:
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def _row(timed: Timed, batch: int) -> dict[str, Any]:
    ms = {way: timed.ms(way) for way in timed.block_ms}
    if batch == 1:  # half of the calls
        ms["half"] = (ms["skipped"] + ms["run"]) / 2
    gained = ms["masked"] - ms["skipped"]
    spent = ms["run"] - ms["skipped"]
    at = gained / spent if spent > 0 else float(gained > 0)
    return {"ms": ms, "break_even_rate": min(1.0, max(0.0, at)), "gain_at_half": ms["masked"] / ms["half"]}
