"""How often did each block run, and what was spent for it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l0runtime.conditional.metadata import ConditionalModel

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Executions:
    """What one request, or all so far, have run.

    Args:
        model: the blocks.
        samples: rows of the batches.
        wanted: for each block, samples for which its gate asked for it.
        computed: for each block, samples that it was computed for: more than wanted where a block runs on the whole
            batch as soon as one sample needs it.
        macs: multiply-accumulates spent, of all samples together.
        macs_masked: what they would have been, had every block been computed and multiplied.
        requests: runs of the model.
    """

    model: ConditionalModel
    samples: int
    wanted: tuple[int, ...]
    computed: tuple[int, ...]
    macs: int
    macs_masked: int
    requests: int = 1

    @property
    def rates(self) -> dict[str, float]:
        """Execution rate of each block: the share of the samples for which its gate asked for it; 0 without samples."""
        return {
            block.name: wanted / max(self.samples, 1)
            for block, wanted in zip(self.model.blocks, self.wanted, strict=True)
        }

    def __add__(self, other: Executions) -> Executions:
        return Executions(
            self.model,
            self.samples + other.samples,
            tuple(a + b for a, b in zip(self.wanted, other.wanted, strict=True)),
            tuple(a + b for a, b in zip(self.computed, other.computed, strict=True)),
            self.macs + other.macs,
            self.macs_masked + other.macs_masked,
            self.requests + other.requests,
        )

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate:.0%}" for name, rate in self.rates.items())
        share = self.macs / self.macs_masked if self.macs_masked else 1.0
        return f"{self.samples} samples in {self.requests} runs: {self.macs:,} MACs, {share:.0%} of masked; {rates}"


def no_executions(model: ConditionalModel) -> Executions:
    """Nothing yet."""
    nothing = (0,) * len(model.blocks)
    return Executions(model, 0, nothing, nothing, 0, 0, 0)


def count_decisions(
    model: ConditionalModel, decisions: Sequence[Array], at_shapes: ConditionalModel | None = None
) -> Executions:
    """What a run has executed.

    Args:
        model: the blocks.
        decisions: of each block, [batch], in the order of the blocks.
        at_shapes: the same blocks with the work that they are at the shapes of this run's inputs.
    """
    work = at_shapes or model
    ran = [np.asarray(decision).reshape(-1) != 0 for decision in decisions]
    samples = len(ran[0]) if ran else 0
    computed: list[int] = []
    for block, mask in zip(model.blocks, ran, strict=True):
        reached = samples if block.parent is None else computed[block.parent]
        whole = reached if mask.any() else 0
        computed.append(whole if block.form == "batch" else int(mask.sum()))
    return Executions(
        model,
        samples,
        tuple(int(mask.sum()) for mask in ran),
        tuple(computed),
        samples * work.macs_always + sum(b.macs * n for b, n in zip(work.blocks, computed, strict=True)),
        samples * work.macs_masked,
    )
