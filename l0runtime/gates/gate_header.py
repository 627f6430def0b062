"""How are attached gates described in a checkpoint's header, and rebuilt without tracing the model again?"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from l0runtime.errors import GateParameterError, ModelFileError, OptionError
from l0runtime.gates.attached import AttachedGates, connect
from l0runtime.gates.cost import CostModel, Term
from l0runtime.gates.gate_spec import GateSpec
from l0runtime.gates.hard_concrete import HardConcrete
from l0runtime.gates.places import KINDS, Place, Point


def describe_gates(gates: AttachedGates) -> dict[str, Any]:
    """A JSON-able description of where the gates stand, how they are distributed and what they save."""
    return {
        "spec": asdict(gates.spec),
        "places": [{**asdict(gate.place), "frozen": gate.is_frozen} for gate in gates],
        "costs": {name: [[term.base, list(term.gates)] for term in cost.terms] for name, cost in gates.costs.items()},
        "refused": gates.refused,
    }


def attach_described(model: nn.Module, description: object) -> None:
    """Attach the gates of a description to the bare model.

    Raises:
        ModelFileError: the description is malformed, or names parameters that the model does not have.
    """
    try:
        gates = _gates(description)
        for place in gates.places:
            for point in (*place.points, *place.writers):
                _check_point(model, place, point)
        connect(model, gates)
    except (KeyError, TypeError, ValueError, AttributeError, GateParameterError, OptionError) as error:
        raise ModelFileError(f"the description of its gates is malformed ({error}).") from error


def _gates(description: Any) -> AttachedGates:
    spec = dict(description["spec"])
    spec["constants"] = HardConcrete(**spec["constants"])
    spec.update({key: tuple(spec[key]) for key in ("kinds", "include", "exclude")})
    places = [_place(entry) for entry in description["places"]]
    costs = {str(name): _cost(terms, len(places)) for name, terms in description["costs"].items()}
    gates = AttachedGates(places, GateSpec(**spec), costs, dict(description["refused"]))
    for gate, entry in zip(gates, description["places"], strict=True):
        if entry["frozen"]:
            gate.freeze(torch.zeros_like(gate.log_alpha))
    return gates


def _cost(terms: Any, count: int) -> CostModel:
    read = [Term(float(base), tuple(int(gate) for gate in gates)) for base, gates in terms]
    if any(not 0 <= gate < count for term in read for gate in term.gates):
        raise ValueError(f"a cost names a gate vector beyond the {count} there are")
    if not all(math.isfinite(term.base) for term in read):
        raise ValueError("a cost is not finite")
    return CostModel(read, count)


def _place(entry: Any) -> Place:
    if entry["kind"] not in KINDS:
        raise ValueError(f"kind {entry['kind']!r} is unknown")
    points, writers = (tuple(_point(point) for point in entry[key]) for key in ("points", "writers"))
    layers = tuple(str(layer) for layer in entry["layers"])
    size, parameters = int(entry["size"]), float(entry["unit_parameters"])
    return Place(str(entry["name"]), entry["kind"], size, points, layers, parameters, writers)


def _point(entry: Any) -> Point:
    axis = None if entry["axis"] is None else int(entry["axis"])
    index = None if entry["index"] is None else tuple(int(position) for position in entry["index"])
    if entry["role"] not in ("in", "out"):
        raise ValueError(f"role {entry['role']!r} is unknown")
    return Point(str(entry["tensor"]), axis, index, entry["role"])


def _check_point(model: nn.Module, place: Place, point: Point) -> None:
    parameter = model.get_parameter(point.tensor)
    if point.axis is None:
        return
    if not 0 <= point.axis < parameter.dim():
        raise ValueError(f"{point.tensor} has no axis {point.axis}")
    length = place.size if point.index is None else len(point.index)
    if parameter.shape[point.axis] != length:
        raise ValueError(f"axis {point.axis} of {point.tensor} has length {parameter.shape[point.axis]}, not {length}")
    if point.index is not None and not all(-1 <= position < place.size for position in point.index):
        raise ValueError(f"{point.tensor}: an index lies beyond the {place.size} gates of {place.name}")
