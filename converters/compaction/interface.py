"""What may compaction never change about a model? The names, shapes and types of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs as they were declared; an output that is listed twice is one output meanwhile.

    Attributes:
        _declared: of each input and each different output.
        _listed: for each output of the model which of the different ones it is.
    """

    _declared: tuple[tuple[str | None, ir.Shape | None, ir.TypeProtocol | None], ...]
    _listed: tuple[int, ...]

    @staticmethod
    def of(graph: ir.Graph) -> Interface:
        """Remember the declarations, before shape inference refines them, and list each output once."""
        listed = list(graph.outputs)
        outputs = list(dict.fromkeys(listed))
        if len(outputs) < len(listed):
            graph.outputs.clear()
            graph.outputs.extend(outputs)
        return Interface(
            tuple((v.name, _copy(v.shape), v.type) for v in (*graph.inputs, *outputs)),
            tuple(outputs.index(value) for value in listed),
        )

    def restore(self, graph: ir.Graph) -> None:
        """Write the declarations back."""
        outputs = list(graph.outputs)
        for value, (name, shape, kind) in zip((*graph.inputs, *outputs), self._declared, strict=True):
            if value.name != name:
                raise AssertionError(f"'{name}' of the model's interface became '{value.name}'")
            value.shape = shape
            if kind is not None:
                value.type = kind
        if len(self._listed) > len(outputs):
            graph.outputs.clear()
            graph.outputs.extend(outputs[position] for position in self._listed)


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape(list(shape))
