"""What does each conditional block cost, and is it worth a branch?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from converters.conditional.outline import Outlined
from l0runtime.conditional import ConditionalBlock, ConditionalModel
from l0runtime.measurement.cost import count_cost

BREAK_EVEN_MACS = {"single": 0, "samples": 200_000, "batch": 200_000}
"""By form: work of a block, for one sample, at which a branch costs about what it saves on a CPU when half of the
samples skip; measured by benchmarks/conditional/break_even.py. Of a GPU nothing is known until `--measure` times it."""


def describe(masked: Path, outlined: Sequence[Outlined], shapes: Mapping[str, tuple[int, ...]]) -> ConditionalModel:
    """Count the work of each block on the masked model, where every operator is in the main graph.

    Args:
        masked: the file that was outlined.
        outlined: its blocks.
        shapes: input shapes of one example.
    """
    cost = count_cost(masked, shapes=shapes)
    macs = {node.name: node.macs for node in cost.nodes}
    blocks = []
    for position, block in enumerate(outlined):
        inner = {name for other in outlined if other.parent == position for name in other.nodes}
        blocks.append(
            ConditionalBlock(
                name=block.name,
                gate=block.gate,
                decision=block.decision,
                chosen=block.chosen,
                form=block.form,
                parent=block.parent,
                runs_if_true=block.runs_if_true,
                is_binary=block.is_binary,
                macs=sum(macs.get(name, 0) for name in block.nodes if name not in inner),
                gate_macs=sum(macs.get(name, 0) for name in block.gate_nodes),
                parameters=block.parameters,
                branch=block.branch,
            )
        )
    return ConditionalModel(tuple(blocks), cost.macs - sum(block.macs for block in blocks))


def work_below(model: ConditionalModel, position: int) -> int:
    """Multiply-accumulates that skipping one block saves: its own and those of the blocks within it."""
    inner = [n for n, block in enumerate(model.blocks) if block.parent == position]
    return model.blocks[position].macs + sum(work_below(model, n) for n in inner)


def is_too_small(model: ConditionalModel, position: int) -> bool:
    """Whether a block's work is less than what its gate and a branch cost on a CPU."""
    block = model.blocks[position]
    return work_below(model, position) < block.gate_macs + BREAK_EVEN_MACS[block.form]
