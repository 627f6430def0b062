"""How is a network gated: which weights become zero, and which are scaled, in each scenario?

Every gate is written into the weights, 50 % exact zeros and the rest in (0, 1]. Positions, as in the literature:

- A: the filter is zero and what follows is alive (BatchNorm, bias), so the unit is a constant, mostly not zero;
- B: filter, bias and norm are zero: the unit is zero;
- C: only the columns of every consumer are zero: nobody reads the unit;
- D: all writers and norms of a residual stream are zero in the same channels;
- closed: whole layers, heads and blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from benchmarks.zoo.places import (
    Attention,
    Group,
    Places,
    composite_projections,
    is_composite,
    weight_axes,
)

SCENARIOS = ("interior.A", "interior.B", "interior.C", "heads.B", "heads.C", "residual.D", "closed", "mixed")
_DEPENDS = 1e-3  # of the output's scale: a closed model must still tell two samples apart


@dataclass(frozen=True)
class Gated:
    """What a scenario did to a model."""

    changed: tuple[str, ...]  # parameter names
    gates: int
    closed: int


class NotApplicableError(Exception):
    """The model has no place of this kind; the message says which."""


@torch.no_grad()
def apply_scenario(model: nn.Module, places: Places, inputs: tuple[Tensor, ...], scenario: str, seed: int) -> Gated:
    """Gate `model` in place.

    Raises:
        NotApplicableError: the model has no such place.
    """
    return _Gater(model, places, inputs, seed).run(scenario)


class _Gater:
    def __init__(self, model: nn.Module, places: Places, inputs: tuple[Tensor, ...], seed: int) -> None:
        self.model = model
        self.inputs = inputs  # two different samples
        self.places = places
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.names = {id(p): n for n, p in model.named_parameters()}
        self.generator = torch.Generator().manual_seed(seed)
        self.changed: set[str] = set()
        self.gates = 0
        self.closed = 0
        self.streams: dict[int, Tensor] = {}  # gates by the embedding that a residual stream starts at

    def run(self, scenario: str) -> Gated:
        interior = [g for g in self.places.groups if not g.residual]
        residual = [g for g in self.places.groups if g.residual]
        readable = [g for g in interior if all(r.offset is not None for r in g.readers)]
        attentions = self.places.attentions
        valued = [a for a in attentions if a.value is not None]
        if scenario in ("interior.A", "interior.B"):
            self._need(interior, "no interior units")
            for group in interior:
                self.zero_writers(group, self.draw(group.width), position=scenario[-1])
        elif scenario == "interior.C":
            self._need(readable, "no interior units whose every consumer has plain columns")
            for group in readable:
                self.zero_columns(group, self.draw(group.width))
        elif scenario == "heads.B":
            self._need(valued, "no attention layer with separable value heads")
            for attention in valued:
                self.zero_value_heads(attention, self.draw(attention.value_heads))
        elif scenario == "heads.C":
            self._need(attentions, "no attention layer with heads")
            for attention in attentions:
                self.zero_head_columns(attention, self.draw(attention.heads))
        elif scenario == "residual.D":
            self._need(residual, "no residual stream that can be gated (its channels reach an output or are mixed)")
            for group in residual:
                self.zero_writers(group, self.draw_stream(group), position="B")
        elif scenario == "closed":
            self.close_some(interior, residual, attentions)
        elif scenario == "mixed":
            self._need([*interior, *residual, *attentions], "nothing to gate")
            for i, group in enumerate(interior):
                if i % 3 == 2 and group in readable:
                    self.zero_columns(group, self.draw(group.width))
                else:
                    self.zero_writers(group, self.draw(group.width), position="AB"[i % 3 == 1])
            for attention in attentions:
                self.zero_head_columns(attention, self.draw(attention.heads))
            for group in residual:
                self.zero_writers(group, self.draw_stream(group), position="B")
        else:
            raise ValueError(f"unknown scenario {scenario!r}; known are {', '.join(SCENARIOS)}")
        return Gated(tuple(sorted(self.changed)), self.gates, self.closed)

    @staticmethod
    def _need(found: Sequence[Any], message: str) -> None:
        if not found:
            raise NotApplicableError(message)

    def draw(self, n: int) -> Tensor:
        """n gates: exactly floor(n / 2) zeros at random, the rest uniform in [0.1, 1]."""
        z = torch.rand(n, generator=self.generator) * 0.9 + 0.1
        z[torch.randperm(n, generator=self.generator)[: n // 2]] = 0.0
        self.gates += n
        self.closed += int((z == 0).sum())
        return z

    def draw_stream(self, group: Group) -> Tensor:
        """Gates of a residual stream; streams that start at one shared embedding (T5) share them."""
        modules = [self.model.get_submodule(writer) for writer in group.writers]
        tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
        shared = [z for key, z in self.streams.items() if key in tables and z.numel() == group.width]
        z = shared[0] if shared else self.draw(group.width)
        self.streams.update(dict.fromkeys(tables, z))
        return z

    def close_some(self, interior: list[Group], residual: list[Group], attentions: list[Attention]) -> None:
        """Whole blocks, attention layers and interior layers, as long as the output still depends on the input."""
        self._need([*interior, *residual, *attentions], "nothing to close")
        blocks: list[Callable[[], int]] = []
        for group in residual:
            writers = [w for w in group.writers if not isinstance(self.model.get_submodule(w), nn.Embedding)]
            blocks += [partial(self.close_block, w, group.width, i % 2 == 0) for i, w in enumerate(writers[1::3])]
        heads = [partial(self.close_heads, attention) for attention in attentions[1::4]]
        layers = [partial(self.close_layer, group, "AB"[i % 2]) for i, group in enumerate(interior[2::5])]
        done = 0
        for close in [*_spread(blocks), *_spread(heads), *_spread(layers)]:
            before = {n: p.detach().clone() for n, p in self.parameters.items()}
            changed = set(self.changed)
            width = close()
            if self.depends_on_input():
                self.gates += width
                self.closed += width
                done += 1
                continue
            for name, value in before.items():
                self.parameters[name].copy_(value)
            self.changed = changed
        self._need([None] * done, "every layer is on the only path from input to output")

    def close_block(self, writer: str, width: int, norm_too: bool) -> int:
        """With its norm a block writes zeros; without, constants."""
        self.rows(writer, torch.zeros(width), bias=True)
        norm = self.places.own_norm.get(writer)
        if norm is not None and norm_too:
            self.norm(norm, torch.zeros(width))
        return width

    def close_heads(self, attention: Attention) -> int:
        self.zero_head_columns(attention, torch.zeros(attention.heads))
        return attention.heads

    def close_layer(self, group: Group, position: str) -> int:
        self.zero_writers(group, torch.zeros(group.width), position)
        return group.width

    def depends_on_input(self) -> bool:
        output = self.model(*self.inputs)
        first = output[0] if isinstance(output, tuple | list) else output
        spread = float((first - first.flip(0)).abs().max())
        return bool(torch.isfinite(first).all()) and spread > _DEPENDS * float(first.abs().max())

    # --- what a gate does to weights --------------------------------------------------------------------------------

    def scale(self, name: str, axis: int, z: Tensor, first: int = 0) -> None:
        """Multiply slices first .. first + n - 1 of a parameter by z, shape [n]."""
        parameter = self.parameters[name]
        part = parameter.narrow(axis, first, z.numel())
        shape = [1] * parameter.ndim
        shape[axis] = -1
        part.mul_(z.reshape(shape))
        part.copy_(torch.where(z.reshape(shape) == 0, 0.0, part))  # no negative zeros
        self.changed.add(self.names[id(parameter)])

    def rows(self, writer: str, z: Tensor, *, bias: bool, first: int = 0) -> None:
        module = self.model.get_submodule(writer)
        if isinstance(module, nn.Embedding):
            self.scale(f"{writer}.weight", 1, z)
            return
        if is_composite(module):
            weight = composite_projections(writer, module)[1]
            self.scale(weight, 0, z)
            names, axis = weight.removesuffix("weight") + "bias", 0
        else:
            axis = weight_axes(module)[0]
            if isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
                raise NotApplicableError(f"{writer} is a grouped transposed convolution")
            self.scale(f"{writer}.weight", axis, z, first)
            names = f"{writer}.bias"
        if bias and self.parameters.get(names) is not None:
            self.scale(names, 0, z, first)

    def norm(self, norm: str, z: Tensor) -> None:
        for leaf in ("weight", "bias"):
            if f"{norm}.{leaf}" in self.parameters:
                self.scale(f"{norm}.{leaf}", 0, z)

    def zero_writers(self, group: Group, z: Tensor, position: str) -> None:
        """Position A (filters only) or B (filters, biases, norms and every other parameter of the index space)."""
        for writer in group.writers:
            self.rows(writer, z, bias=position == "B")
        if position == "B":
            open_or_closed = (z != 0).float()  # the filters carry the fractional values
            for member in group.members:
                self.scale(member.parameter, member.axis, open_or_closed)

    def zero_columns(self, group: Group, z: Tensor) -> None:
        """Position C: scale the columns of every consumer."""
        for reader in group.readers:
            assert reader.offset is not None
            module = self.model.get_submodule(reader.module)
            columns = z.repeat_interleave(reader.factor)
            if is_composite(module):
                self.scale(composite_projections(reader.module, module)[0], 1, columns)
            else:
                axis = weight_axes(module)[1]
                self.scale(f"{reader.module}.weight", axis, columns, reader.offset * reader.factor)

    def zero_head_columns(self, attention: Attention, z: Tensor) -> None:
        weight = self.parameters[f"{attention.output}.weight"]
        axis = weight_axes(self.model.get_submodule(attention.output))[1]
        self.scale(f"{attention.output}.weight", axis, z.repeat_interleave(weight.shape[axis] // attention.heads))

    def zero_value_heads(self, attention: Attention, z: Tensor) -> None:
        assert attention.value is not None
        module = self.model.get_submodule(attention.value)
        projection = self.model.get_submodule(attention.output)
        size = projection.weight.shape[weight_axes(projection)[1]] // attention.heads  # type: ignore[union-attr,index]
        rows = z.repeat_interleave(size)
        if attention.interleaved:
            rows = torch.stack([torch.ones_like(z), torch.ones_like(z), z], dim=1).flatten().repeat_interleave(size)
        if is_composite(module):
            weight = composite_projections(attention.value, module)[0]
            self.scale(weight, 0, rows, attention.value_offset)
            bias = weight.removesuffix("weight") + "bias"
            if bias in self.parameters:
                self.scale(bias, 0, rows, attention.value_offset)
        else:
            self.rows(attention.value, rows, bias=True, first=attention.value_offset)


def _spread(actions: Sequence[Any], most: int = 4) -> list[Any]:
    """At most `most` of the actions, evenly spread."""
    return list(actions[:: max(1, -(-len(actions) // most))])
