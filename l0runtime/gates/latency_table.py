"""How long will the network take on the user's machine, as a differentiable function of what its gates keep?

Each layer with a weight has a table of its measured times over the widths of its two sides; between the measured
widths the time is interpolated bilinearly. What the layers do not explain of the whole network's own time (norms,
attention, activations, additions) shrinks with the number of values written, and a part is fixed:

    latency(s) = fixed + other * activations(s) + sum_l present_l(s) * table_l(inputs_l(s), outputs_l(s))

with s the share that each gate vector keeps. `measure_latency` (latency_measuring.py) makes the table.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from l0runtime.errors import ModelFileError
from l0runtime.gates.cost import CostModel, Term

GRID: Final = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)  # shares of a width that a table holds times for
BLOCK: Final = 8  # units that kernels work in
BLOCKED_FROM: Final = 32  # narrower layers are measured, and counted, unit by unit
_FORMAT = 1


@dataclass(frozen=True)
class TimedLayer:
    """One layer with a weight.

    Args:
        name: of the module.
        kind: the layer that was measured, in words.
        inputs, outputs: share of each side that the gates keep; inputs is None for a depthwise convolution.
        present: the probability that no block around it is closed.
        times_ms: [inputs][outputs], over GRID each.
    """

    name: str
    kind: str
    inputs: CostModel | None
    outputs: CostModel
    present: CostModel
    times_ms: tuple[tuple[float, ...], ...]


class LatencyTable:
    """The latency of a gated network, from the measured times of its layers.

    Args:
        layers: those with a weight.
        activations: number of values written, as a function of what the gates keep.
        other_ms: time that shrinks with the values written.
        fixed_ms: time that nothing saves.
        places: names of the gate vectors, in the order that `fraction` expects.
        sizes: number of gates of each.
        conditions: what was measured, and with what.
    """

    def __init__(
        self,
        layers: tuple[TimedLayer, ...],
        activations: CostModel,
        other_ms: float,
        fixed_ms: float,
        places: tuple[str, ...],
        sizes: tuple[int, ...],
        conditions: Mapping[str, str],
    ) -> None:
        self.layers, self.activations = layers, activations
        self.other_ms, self.fixed_ms = other_ms, fixed_ms
        self.places, self.sizes, self.count = places, sizes, len(places)
        self.conditions = dict(conditions)
        self._evaluate = _Evaluation(self)
        self.total_ms = float(self._evaluate(torch.ones(max(self.count, 1))))

    def latency_ms(self, shares: Tensor) -> Tensor:
        """Predicted latency, a scalar; shares: kept share per gate vector, [count]."""
        return self._evaluate(shares)

    def fraction(self, shares: Tensor) -> Tensor:
        """The same as a fraction of the ungated network's."""
        return self.latency_ms(shares) / self.total_ms

    @torch.no_grad()
    def kept_fraction(self, shares: Tensor) -> Tensor:
        """The same for what is kept in the end: kernels work in blocks of 8, so wide vectors count in steps of 8 units.

        `converters.convert(align="auto")` pads up to such widths where that is faster.
        """
        sizes = torch.tensor(self.sizes, dtype=shares.dtype, device=shares.device)
        units = (shares * sizes).round()
        padded = torch.minimum((units / BLOCK).ceil() * BLOCK, sizes)
        return self.fraction(torch.where(sizes >= BLOCKED_FROM, padded, units) / sizes)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=5)
        rows = [f"{'layer':<{width}}  {'half':>9}  {'full':>9}  (ms)"]
        half = GRID.index(0.5)
        rows += [
            f"{layer.name:<{width}}  {layer.times_ms[half][half]:>9.4f}  {layer.times_ms[-1][-1]:>9.4f}"
            for layer in self.layers
        ]
        rows.append(f"{'other':<{width}}  {'':>9}  {self.other_ms:>9.4f}")
        rows.append(f"{'fixed':<{width}}  {self.fixed_ms:>9.4f}  {self.fixed_ms:>9.4f}")
        rows.append(f"{'total':<{width}}  {'':>9}  {self.total_ms:>9.4f}")
        return "\n".join([*rows, ", ".join(f"{key} {value}" for key, value in self.conditions.items())])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, so that a resumed run has the very same; atomically."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        content = {
            "format": _FORMAT,
            "conditions": self.conditions,
            "places": self.places,
            "sizes": self.sizes,
            "grid": GRID,
            "fixed_ms": self.fixed_ms,
            "other_ms": self.other_ms,
            "activations": _described(self.activations),
            "layers": [
                {
                    **{key: getattr(layer, key) for key in ("name", "kind", "times_ms")},
                    **{key: _described(getattr(layer, key)) for key in ("inputs", "outputs", "present")},
                }
                for layer in self.layers
            ],
        }
        try:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """Read a table that `save` wrote.

        Raises:
            ModelFileError: the file is missing, or no such table.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT or tuple(content["grid"]) != GRID:
                raise ValueError(f"it is of format {content['format']}, expected {_FORMAT}")
            places = tuple(str(name) for name in content["places"])
            layers = tuple(_layer(entry, len(places)) for entry in content["layers"])
            activations = _cost(content["activations"], len(places))
            assert activations is not None
            times = float(content["other_ms"]), float(content["fixed_ms"])
            sizes = tuple(int(size) for size in content["sizes"])
            return cls(layers, activations, *times, places, sizes, content["conditions"])
        except FileNotFoundError as error:
            raise ModelFileError(f"{path}: no such file; expected a latency table (measure_latency).") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ModelFileError(f"{path}: is no latency table ({error}). Measure it again.") from error


def _described(cost: CostModel | None) -> list[dict[str, Any]] | None:
    return None if cost is None else [asdict(term) for term in cost.terms]


def _cost(terms: Any, count: int) -> CostModel | None:
    if terms is None:
        return None
    read = [Term(float(term["base"]), tuple(int(gate) for gate in term["gates"])) for term in terms]
    if any(not 0 <= gate < count for term in read for gate in term.gates):
        raise ValueError(f"a term names a gate vector beyond the {count} there are")
    return CostModel(read, count)


def _layer(entry: Any, count: int) -> TimedLayer:
    times = torch.tensor(entry["times_ms"], dtype=torch.float64)
    if times.shape != (len(GRID), len(GRID)) or not bool((times.isfinite() & (times >= 0)).all()):
        raise ValueError(f"the times of {entry['name']} are no {len(GRID)} by {len(GRID)} numbers")
    outputs, present = _cost(entry["outputs"], count), _cost(entry["present"], count)
    assert outputs is not None
    assert present is not None
    rows = tuple(tuple(row) for row in times.tolist())
    return TimedLayer(str(entry["name"]), str(entry["kind"]), _cost(entry["inputs"], count), outputs, present, rows)


class _Evaluation:
    """All layers at once: every share is a sum of the same monomials in the gates' shares."""

    def __init__(self, table: LatencyTable) -> None:
        self.fixed_ms, self.other_ms = table.fixed_ms, table.other_ms
        whole = CostModel([Term(1.0, ())], table.count)
        costs = [table.activations if table.activations.total else whole]
        for layer in table.layers:
            costs += [layer.inputs or whole, layer.outputs, layer.present]
        monomials = {gates: row for row, gates in enumerate(dict.fromkeys(t.gates for c in costs for t in c.terms))}
        self.powers = torch.zeros(len(monomials), max(table.count, 1))
        for gates, row in monomials.items():
            for gate in gates:
                self.powers[row, gate] += 1
        self.weights = torch.zeros(len(costs), len(monomials))
        for row, cost in enumerate(costs):
            for term in cost.terms:
                self.weights[row, monomials[term.gates]] += term.base / cost.total
        times = [layer.times_ms for layer in table.layers]
        self.times = torch.tensor(times).reshape(len(times), len(GRID), len(GRID))
        self.grid = torch.tensor(GRID)

    def __call__(self, shares: Tensor) -> Tensor:
        device = shares.device
        monomials = torch.pow(shares, self.powers.to(device)).prod(1)
        activations, *_ = found = self.weights.to(device) @ monomials
        inputs, outputs, present = found[1:].reshape(-1, 3).T.contiguous()  # [layers] each
        times, layer = self.times.to(device), torch.arange(len(self.times), device=device)
        i, a = self._locate(inputs)
        j, b = self._locate(outputs)
        low = (1 - b) * times[layer, i, j] + b * times[layer, i, j + 1]
        high = (1 - b) * times[layer, i + 1, j] + b * times[layer, i + 1, j + 1]
        times_ms = (1 - a) * low + a * high  # [layers]
        total: Tensor = self.fixed_ms + self.other_ms * activations + (present * times_ms).sum()
        return total

    def _locate(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Interval of the grid that a share lies in, and where in it, from 0 to 1."""
        grid = self.grid.to(share.device)
        index = (torch.bucketize(share.detach(), grid, right=True) - 1).clamp(0, len(GRID) - 2)
        return index, (share - grid[index]) / (grid[index + 1] - grid[index])
