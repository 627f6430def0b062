"""What may compaction never change about a model? The names, shapes and types of its inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs as they were declared."""

    _declared: tuple[tuple[str | None, ir.Shape | None, ir.TypeProtocol | None], ...]

    @staticmethod
    def of(graph: ir.Graph) -> Interface:
        """Remember the declarations, before shape inference refines them."""
        return Interface(tuple((v.name, _copy(v.shape), v.type) for v in (*graph.inputs, *graph.outputs)))

    def restore(self, graph: ir.Graph) -> None:
        """Write the declarations back."""
        values = (*graph.inputs, *graph.outputs)
        for value, (name, shape, kind) in zip(values, self._declared, strict=True):
            if value.name != name:
                raise AssertionError(f"'{name}' of the model's interface became '{value.name}'")
            value.shape = shape
            if kind is not None:
                value.type = kind


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape(list(shape))
