"""Is a padded model really faster than the unpadded one: `align="auto"`, `"none"` or a multiple?

With `auto` the widths that a table of layer times proposes (width_policies.py) are tried on the model itself: the
padded and the unpadded compact model are timed in pairs, and the padded one is kept only if it is faster beyond doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from converters.output_files import save_model
from l0runtime.errors import OptionError

if TYPE_CHECKING:
    from converters.compaction import Compaction
    from converters.width_policies import Replayed

Align = Literal["auto", "none"] | int
_SECONDS = 2.0


@dataclass(frozen=True)
class Target:
    """Where the model is to be fast.

    Attributes:
        device, threads: as in `l0runtime.load`.
        batch: examples in a call.
    """

    device: str = "cpu"
    threads: int = 1
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.device}, {self.threads} threads, batch {self.batch}"


@dataclass(frozen=True)
class Padded:
    """What became of the attempt.

    Attributes:
        compaction, path, widths: the padded model; None where the unpadded one stays.
        note: what was found, in a sentence.
    """

    note: str
    compaction: Compaction | None = None
    path: Path | None = None
    widths: Replayed | None = None


def check_align(align: object) -> Align:
    """`auto`, `none` or a number of channels, also as text.

    Raises:
        OptionError: anything else.
    """
    text = str(align)
    if text == "auto":
        return "auto"
    if text == "none":
        return "none"
    if not text.isdecimal() or int(text) < 1:
        raise OptionError(f"align '{text}': expected auto, none or a number of channels of at least 1.")
    return int(text)


def pad_if_faster(
    gated: Path, plain: Path, folder: Path, shapes: Mapping[str, tuple[int, ...]], target: Target
) -> Padded:
    """Compact once more, with the widths that should be fastest, and keep that only if it is faster.

    Args:
        gated, plain: the gated model and its unpadded compaction.
        folder: where the padded model is written, under the name of `plain`.
        shapes: input shapes of one example.
        target: where the model is to be fast.
    Raises: as `l0runtime.load`.
    """
    import onnx_ir as ir

    from converters.compaction import compact
    from converters.width_policies import Cheapest, Replayed
    from l0runtime.measurement import Verdict, compare_speed
    from l0runtime.measurement.layer_times import LayerTimes
    from l0runtime.onnx_files import read_model
    from l0runtime.sample_inputs import input_specs, sample_inputs

    proto = read_model(gated, weights=False)
    sizes: dict[str, int] = {}
    wanted: dict[str, tuple[int, ...]] = {}
    for spec in input_specs(proto):
        pairs = enumerate(zip(spec.shape, shapes[spec.name], strict=True))
        shape = [target.batch if axis == 0 and not isinstance(dim, int) else size for axis, (dim, size) in pairs]
        wanted[spec.name] = tuple(shape)
        sizes |= {dim: size for dim, size in zip(spec.shape, shape, strict=True) if isinstance(dim, str)}
    times = LayerTimes(target.device, target.threads)
    chooser = Cheapest(times, sizes)
    compaction = compact(ir.load(str(gated)), chooser)
    table = f"{times.measured} layer times measured"
    if not times.save():
        table += f", not kept because {times.path.parent} cannot be written to"
    about = f"align auto on {target} ({table})"
    if not chooser.chosen:
        return Padded(f"{about}: no width should be padded")
    count = f"{len(chooser.chosen)} of {chooser.couplings} widths"
    folder.mkdir()
    path = save_model(compaction.model, folder / plain.name)
    feed = sample_inputs(proto, shapes=wanted)
    speed = compare_speed(path, plain, feed, device=target.device, threads=target.threads, budget_seconds=_SECONDS)
    found = speed.speed_up
    measured = f"{found.estimate:.3f} times as fast as unpadded, 95 % interval [{found.low:.3f}, {found.high:.3f}]"
    if speed.verdict is not Verdict.FASTER:
        return Padded(f"{about}: {count} could be padded, but that is {measured}; left unpadded")
    return Padded(f"{about}: {count} padded, {measured}", compaction, path, Replayed(chooser.chosen))
