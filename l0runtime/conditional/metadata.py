"""What does a model file say about the blocks that it runs for some inputs only?

The converter writes it as JSON under the metadata key `l0runtime.conditional`; everything that counts, forces or prints
decisions reads it here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from l0runtime.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

KEY = "conditional"
"""Metadata key, without the prefix `l0runtime.`"""
_PREFIX = "l0runtime."


@dataclass(frozen=True)
class ConditionalBlock:
    """One block that runs for some samples only.

    Args:
        name: the module it was.
        gate: value that decides, one number (or bool) per sample that reaches the block; in the masked model too.
        decision: value of the main graph, [batch]: the block ran for a sample where it is not 0.
        chosen: value that holds the indices of the samples that run, "" where all run together.
        form: "single" (a batch of one), "samples" (any subset runs) or "batch" (all run as soon as one must).
        parent: position of the block that it lies in, None for a block of the main graph.
        runs_if_true: False for a block that runs where its gate is 0.
        is_binary: the gate is 0 or 1, nothing in between.
        macs: multiply-accumulates of the block for one sample, without blocks within it.
        gate_macs: those of the network that decides alone.
        parameters: weights in the block.
        branch: name of the If node that it became.
    """

    name: str
    gate: str
    decision: str
    chosen: str
    form: str
    parent: int | None
    runs_if_true: bool
    is_binary: bool
    macs: int
    gate_macs: int
    parameters: int
    branch: str


@dataclass(frozen=True)
class ConditionalModel:
    """All blocks of a model, parents first, and what is spent for every sample.

    Multiply-accumulates are those of the input shapes that the file was converted at; `recount` has them at others.
    """

    blocks: tuple[ConditionalBlock, ...]
    macs_always: int

    @property
    def macs_masked(self) -> int:
        """Multiply-accumulates for one sample for which every block runs."""
        return self.macs_always + sum(block.macs for block in self.blocks)

    def metadata(self) -> dict[str, str]:
        """The entry in a file's metadata."""
        return {f"{_PREFIX}{KEY}": json.dumps(asdict(self))}

    def macs_spent(self, rates: Sequence[float]) -> float:
        """Mean multiply-accumulates for one sample.

        Args:
            rates: for each block the share of the samples that it ran for; 0 where its parent did not run.
        """
        return self.macs_always + sum(block.macs * rate for block, rate in zip(self.blocks, rates, strict=True))


def read_conditional(metadata: Mapping[str, str], source: str = "model") -> ConditionalModel | None:
    """The blocks that a file's metadata (keys without prefix) declares, None for a model without any.

    Raises:
        ModelFileError: the entry is no valid description.
    """
    text = metadata.get(KEY)
    if text is None:
        return None
    try:
        fields = json.loads(text)
        blocks = tuple(ConditionalBlock(**block) for block in fields["blocks"])
        return ConditionalModel(blocks, int(fields["macs_always"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"{source}: its description of conditional blocks is damaged ({error}). Convert the model again."
        ) from error


def conditional_blocks(proto: onnx.ModelProto, source: str = "model") -> ConditionalModel | None:
    """The blocks that a model in memory declares; None for a model without any.

    Raises:
        ModelFileError: the entry is no valid description.
    """
    metadata = {entry.key.removeprefix(_PREFIX): entry.value for entry in proto.metadata_props}
    model = read_conditional(metadata, source)
    return model if model is not None and model.blocks else None
