"""Measure models: arithmetic and weights (`count_cost`), and which of two is faster (`bench`)."""

from __future__ import annotations

from l0runtime.measurement.cost import Cost, NodeCost, count_cost

__all__ = ["Cost", "NodeCost", "count_cost"]
