"""Where in a traced network can gates stand, and which parameters does each gate scale?

Four kinds of places:

units    interior channels and neurons, written by one layer (or by several whose outputs are multiplied)
heads    attention heads
stream   the channels of a residual stream, which several layers add into
blocks   a whole branch beside a skip connection, one gate

A gate scales parameters, not activations. A closed unit must be exactly zero wherever it is read, so it scales

- the affine parameters of the BatchNorm behind its only writer: then nothing normalises the gate away;
- else the columns of the weights that read it;
- else, where a norm or a sum sees all channels of the space, everything that emits it: output rows and their biases,
  the norms' affine parameters, and the embeddings that are added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch.fx import Node

from l0runtime.gates.cost import CostModel, Term
from l0runtime.gates.couplings import Contraction, Couplings, operator_name
from l0runtime.gates.symbolic_axes import Axis, Space, axis_size, factors, leaves, positions
from l0runtime.gates.tracing import Trace

Kind = Literal["units", "heads", "stream", "blocks"]
KINDS: tuple[Kind, ...] = ("units", "heads", "stream", "blocks")
PointRole = Literal["in", "out"]
_PASSES = set(  # operators that hand a factor on to their result
    """
    view reshape permute transpose t unsqueeze squeeze flatten unflatten contiguous clone dropout to _to_copy roll slice
    _unsafe_view feature_dropout alias
    """.split()  # noqa: SIM905 - a list of names reads better without quotes
)


@dataclass(frozen=True)
class Point:
    """One parameter that a gate scales.

    Args:
        tensor: qualified name of the parameter.
        axis: its axis that the gate lies on, None where the gate is a single one for the whole tensor.
        index: for each position of the axis the gate that scales it, -1 for none; None where they are the same.
        role: "in" for a weight's columns, which act on the layer's input; "out" for what acts on its output.
    """

    tensor: str
    axis: int | None
    index: tuple[int, ...] | None
    role: PointRole


@dataclass(frozen=True)
class Place:
    """One gate vector and what it scales.

    Args:
        name: of the layer that writes the units, or of the attention layer or branch.
        kind: see the module.
        size: number of gates.
        points: the parameters that it scales.
        layers: names of all layers that write or read its units.
        unit_parameters: parameters of the writing layers per unit, |g| of the paper's penalty.
        writers: these parameters, with the axis that the units lie on.
    """

    name: str
    kind: Kind
    size: int
    points: tuple[Point, ...]
    layers: tuple[str, ...]
    unit_parameters: float
    writers: tuple[Point, ...] = ()


@dataclass(frozen=True)
class LayerWidths:
    """What the gates leave of one layer with a weight.

    Args:
        name: of the module that holds the weight.
        node: of the graph.
        inputs, outputs: width of its two sides as a share of the full one; inputs is None for a depthwise convolution.
        present: the probability that no block around it is closed.
    """

    name: str
    node: Node
    inputs: CostModel | None
    outputs: CostModel
    present: CostModel


@dataclass(frozen=True)
class Found:
    """All places of a network.

    Args:
        places: in the order of the graph, streams and blocks last.
        refused: name -> why no gates stand there.
        macs, parameters: expected cost as a function of what the gates keep, in the order of `places`.
        activations: the same for the number of values that the network writes for one example.
        layers: the same for the widths of each layer with a weight.
    """

    places: tuple[Place, ...]
    refused: dict[str, str]
    macs: CostModel
    parameters: CostModel
    activations: CostModel
    layers: tuple[LayerWidths, ...]


def find_places(trace: Trace, couplings: Couplings, parameters: dict[str, int]) -> Found:
    """Find every place that a gate can stand at.

    Args:
        trace, couplings: of the model.
        parameters: sizes of the model's parameters by name (buffers left out).
    """
    finder = _Finder(trace, couplings, parameters)
    finder.spaces()
    finder.blocks()
    return finder.result()


def module_of(tensor: str) -> str:
    """Name of the module that holds a parameter."""
    return tensor.rpartition(".")[0]


class _Finder:
    def __init__(self, trace: Trace, couplings: Couplings, parameters: dict[str, int]) -> None:
        self.trace, self.couplings, self.parameters = trace, couplings, parameters
        self.found: list[tuple[Place, Space | None]] = []
        self.refused: dict[str, str] = {}
        self.carriers = _carriers(couplings)
        self.inside: dict[Node, list[int]] = {}  # node -> positions in `found` of the blocks around it

    # --- spaces -----------------------------------------------------------------------------------------------------

    def spaces(self) -> None:
        late: list[tuple[Place, Space]] = []
        for space, writers in _written_spaces(self.couplings).items():
            place = self._place_of(space, writers)
            if isinstance(place, str):
                self.refused.setdefault(module_of(writers[0].weight or ""), place)
            elif place.kind == "stream":
                late.append((place, space))
            else:
                self.found.append((place, space))
        self.found.extend(late)

    def _place_of(self, space: Space, writers: list[Contraction]) -> Place | str:
        carriers = self.carriers[space]
        readers = [(name, axis) for name, axis in carriers if self.couplings.roles.get((name, axis)) == "in"]
        layer = module_of(writers[0].weight or "")
        if space.pinned is not None:
            return space.pinned
        emitted = self._emitters(space)
        is_embedded = any(self.couplings.roles.get(carrier) == "table" for carrier in carriers)
        if space.is_head:
            kind, chosen, name = "heads", readers, f"{module_of(module_of(readers[0][0])) if readers else layer}.heads"
        elif space.is_added_to and (len(writers) > 1 or is_embedded):
            kind, chosen, name = "stream", emitted, f"{layer}.stream"
        else:
            kind, name = "units", layer
            norm = self._norm_behind(writers[0]) if len(writers) == 1 else None
            if space.is_mixed or not readers:
                chosen = emitted
            elif norm is not None:
                chosen = [(tensor, 0) for tensor in norm]
            else:
                chosen = readers
        lacking = [tensor for tensor, _ in chosen if tensor not in self.parameters]
        if lacking or not chosen:
            return f"the buffer {lacking[0]} is added to it" if lacking else "nothing reads it"
        role: PointRole = "in" if chosen is readers else "out"
        try:
            points = tuple(point for tensor, axis in chosen for point in self._points(tensor, axis, space, role))
            rows = tuple(point for tensor, axis in _rows(writers) for point in self._points(tensor, axis, space, "out"))
        except ValueError as error:
            return str(error)
        layers = dict.fromkeys(module_of(tensor) for tensor, _ in carriers)
        owned = sum(self._numel(w.weight) + self._numel(w.bias) for w in writers)
        return Place(name, kind, space.size, points, tuple(layers), owned / space.size, rows)  # type: ignore[arg-type]

    def _points(self, tensor: str, axis: int, space: Space, role: PointRole) -> list[Point]:
        try:
            index = positions(self.couplings.tensors[tensor][axis], space)
        except ValueError as error:
            raise ValueError(f"{tensor}: {error}") from error
        whole = index.size == space.size and bool((index == np.arange(space.size)).all())
        names = self._names(tensor, self.couplings.roles.get((tensor, axis)) == "table")
        return [Point(name, axis, None if whole else tuple(index.tolist()), role) for name in names]

    def _names(self, tensor: str, is_table: bool) -> list[str]:
        """Where a parameter is scaled: of a tied one only the modules that use it as it is used here."""
        names = self.trace.tied.get(tensor)
        if names is None:
            return [tensor]
        fitting = [name for name in names if (name in self.trace.tables) == is_table]
        if not fitting:
            use = "looks it up" if is_table else "multiplies with it"
            raise ValueError(f"{' and '.join(names)} are one parameter, and no name tells which module {use}")
        return fitting

    def _numel(self, tensor: str | None) -> int:
        return self.parameters.get(tensor, 0) if tensor is not None else 0

    def _norm_behind(self, writer: Contraction) -> tuple[str, ...] | None:
        """Affine parameters of the BatchNorm that alone reads a contraction's result."""
        users = list(writer.node.users)
        if len(users) != 1 or users[0] not in self.couplings.norms or operator_name(users[0]) != "batch_norm":
            return None
        return self.couplings.norms[users[0]] or None

    def _emitters(self, space: Space) -> list[tuple[str, int]]:
        """All parameters whose values appear on the space: rows, biases, norms, what is added."""
        normed = {w.weight for w in self.couplings.contractions if self._norm_behind(w) is not None}
        normed |= {w.bias for w in self.couplings.contractions if self._norm_behind(w) is not None}
        silent = {"in", "scale", "statistic"}
        return [
            (name, axis)
            for name, axis in self.carriers[space]
            if self.couplings.roles.get((name, axis), "added") not in silent and name not in normed
        ]

    # --- blocks -----------------------------------------------------------------------------------------------------

    def blocks(self) -> None:
        nodes = list(self.trace.graph.nodes)
        number = {node: position for position, node in enumerate(nodes)}
        ancestors: dict[Node, int] = {}
        for node in nodes:
            bits = 1 << number[node]
            for source in node.all_input_nodes:
                bits |= ancestors[source]
            ancestors[node] = bits
        contractions = {c.node for c in self.couplings.contractions}
        for node in nodes:
            if node.op != "call_function" or operator_name(node) != "add" or len(node.all_input_nodes) != 2:
                continue
            for branch, skip in (tuple(node.all_input_nodes), tuple(node.all_input_nodes)[::-1]):
                if branch is skip or not ancestors[branch] >> number[skip] & 1 or skip.op != "call_function":
                    continue
                members = [n for n in nodes if ancestors[branch] >> number[n] & 1 and ancestors[n] >> number[skip] & 1]
                members = [n for n in members if n is not skip]
                if any(n in contractions for n in members):
                    self._add_block(node, branch, members)

    def _add_block(self, add: Node, branch: Node, members: list[Node]) -> None:
        inner = {*members, add}
        tensors = self._last_parameters(branch, add)
        if isinstance(tensors, str):
            self.refused[f"the branch into {add.name}"] = tensors
            return
        try:
            tensors = tuple(name for tensor in tensors for name in self._names(tensor, is_table=False))
        except ValueError as error:
            self.refused[f"the branch into {add.name}"] = str(error)
            return
        name = f"{module_of(tensors[0])}.block"
        if any(user not in inner for member in members for user in member.users):
            self.refused[name] = "its branch is read from outside"
            return
        inside = {source.name for member in members for source in member.all_input_nodes}
        owned = [tensor for key, tensor in self.trace.tensors.items() if key in inside]
        layers = tuple(dict.fromkeys(module_of(tensor) for tensor in owned))
        points = tuple(Point(tensor, None, None, "out") for tensor in tensors)
        whole = tuple(Point(tensor, None, None, "out") for tensor in owned if tensor in self.parameters)
        place = Place(name, "blocks", 1, points, layers, float(sum(self._numel(t) for t in owned)), whole)
        for member in members:
            self.inside.setdefault(member, []).append(len(self.found))
        self.found.append((place, None))

    def _last_parameters(self, branch: Node, add: Node) -> tuple[str, ...] | str:
        """The parameters in which a branch's result is linear, so that scaling them scales it."""
        node, user = branch, add
        while True:
            if [u for u in node.users if u is not user]:
                return f"{node.name} has other readers"
            for contraction in self.couplings.contractions:
                if contraction.node is node:
                    names = [name for name in (contraction.weight, contraction.bias) if name is not None]
                    return tuple(names) or "it ends in a product of two activations"
            if node in self.couplings.norms:
                return self.couplings.norms[node] or "it ends in a norm without parameters"
            name = operator_name(node) if node.op == "call_function" else node.op
            sources = list(node.all_input_nodes)
            if name == "mul":
                scales = [s for s in sources if s.op == "placeholder" and s.name in self.trace.tensors]
                if scales:
                    return (self.trace.tensors[scales[0].name],)
            if name not in _PASSES or not sources:
                return f"it ends in {name}, which no parameter scales"
            node, user = sources[0], node

    # --- costs ------------------------------------------------------------------------------------------------------

    def result(self) -> Found:
        places = _with_unique_names([place for place, _ in self.found])
        gate_of = {space: position for position, (_, space) in enumerate(self.found) if space is not None}
        batch = self.trace.batch
        macs = []
        for contraction in self.couplings.contractions:
            blocks = self.inside.get(contraction.node, [])
            macs.extend(_terms(contraction.macs / batch, contraction.axes, gate_of, blocks))
        parameters = []
        users = {self.trace.tensors[n.name]: n.users for n in self.trace.graph.nodes if n.name in self.trace.tensors}
        for name, axes in self.couplings.tensors.items():
            if name in self.parameters:
                around = [set(self.inside.get(user, [])) for user in users[name]]
                blocks = sorted(set.intersection(*around)) if around else []
                parameters.extend(_terms(self.parameters[name], tuple(axes), gate_of, blocks))
        values = []
        for node, shape in self.couplings.written.items():
            size = math.prod(axis_size(axis) for axis in shape)
            values.extend(_terms(size / batch, shape, gate_of, self.inside.get(node, [])))
        count = len(places)
        return Found(
            places,
            self.refused,
            CostModel(macs, count),
            CostModel(parameters, count),
            CostModel(values, count),
            tuple(self._layer(contraction, gate_of, count) for contraction in self._weighted()),
        )

    def _weighted(self) -> list[Contraction]:
        return [contraction for contraction in self.couplings.contractions if contraction.weight is not None]

    def _layer(self, contraction: Contraction, gate_of: dict[Space, int], count: int) -> LayerWidths:
        assert contraction.weight is not None
        axes = self.couplings.tensors[contraction.weight]
        sides = [
            None if position is None else CostModel(_terms(1.0, (axes[position],), gate_of, []), count)
            for position in (contraction.in_axis, contraction.out_axis)
        ]
        assert sides[1] is not None
        present = CostModel([Term(1.0, tuple(self.inside.get(contraction.node, [])))], count)
        return LayerWidths(module_of(contraction.weight), contraction.node, sides[0], sides[1], present)


def _rows(writers: list[Contraction]) -> list[tuple[str, int]]:
    """Weights and biases of the writing layers, each with the axis of its outputs."""
    rows = [(w.weight, w.out_axis) for w in writers if w.weight is not None]
    return rows + [(w.bias, 0) for w in writers if w.bias is not None]


def _terms(base: float, axes: Iterable[Axis], gate_of: dict[Space, int], blocks: list[int]) -> list[Term]:
    """A product of axes as a sum of terms, each a number times powers of the gates' shares."""
    terms: list[tuple[float, tuple[int, ...]]] = [(float(base), tuple(blocks))]
    for axis in axes:
        parts = _split_by_gates(axis, gate_of)
        terms = [(amount * part, (*gates, *more)) for amount, gates in terms for part, more in parts]
    merged: dict[tuple[int, ...], float] = {}
    for amount, gates in terms:
        key = tuple(sorted(gates))
        merged[key] = merged.get(key, 0.0) + amount
    return [Term(amount, gates) for gates, amount in merged.items()]


def _split_by_gates(axis: Axis, gate_of: dict[Space, int]) -> list[tuple[float, tuple[int, ...]]]:
    """The shares of an axis by the gates that they depend on; they sum to 1."""
    result: list[tuple[float, tuple[int, ...]]] = [(1.0, ())]
    for factor in factors(axis):
        if factor in gate_of:
            pieces: list[tuple[float, tuple[int, ...]]] = [(1.0, (gate_of[factor],))]
        elif factor.parts is not None:
            pieces = [
                (amount * axis_size(part) / factor.size, gates)
                for part in factor.parts
                for amount, gates in _split_by_gates(part, gate_of)
            ]
        else:
            continue
        result = [(a * b, (*left, *right)) for a, left in result for b, right in pieces]
    return result


def _carriers(couplings: Couplings) -> dict[Space, list[tuple[str, int]]]:
    """Space -> the parameters and buffers that lie on it, each with its axis."""
    carriers: dict[Space, list[tuple[str, int]]] = {}
    for name, axes in couplings.tensors.items():
        for position, axis in enumerate(axes):
            for space in dict.fromkeys(leaves(axis)):
                carriers.setdefault(space, []).append((name, position))
    return carriers


def _written_spaces(couplings: Couplings) -> dict[Space, list[Contraction]]:
    """Space -> the contractions whose weights write it, in the order of the graph."""
    written: dict[Space, list[Contraction]] = {}
    for contraction in couplings.contractions:
        if contraction.weight is not None:
            for space in dict.fromkeys(leaves(couplings.tensors[contraction.weight][contraction.out_axis])):
                written.setdefault(space, []).append(contraction)
    return written


def _with_unique_names(places: list[Place]) -> tuple[Place, ...]:
    seen: dict[str, int] = {}
    result = []
    for place in places:
        count = seen[place.name] = seen.get(place.name, 0) + 1
        result.append(place if count == 1 else replace(place, name=f"{place.name}#{count}"))
    return tuple(result)
