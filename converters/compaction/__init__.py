"""The compaction engine: remove from an ONNX graph what provably does not change its function.

    normalise -> analyse (facts, need) -> order features -> solve, try options -> select inputs -> choose -> plan
    -> rewrite -> fold

One file per stage; `rules/` says what each operator means, `relations/` what a relation means, and
`axes.py` holds the three vectors that everything is about.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from converters.compaction import rules as rules  # importing registers every rule
from converters.compaction.analysis import analyse
from converters.compaction.axes import Permission
from converters.compaction.choices import choose
from converters.compaction.feature_order import Reordered, order_features
from converters.compaction.finiteness import need_finite_operands
from converters.compaction.fold import fold_batch_norms, fold_scales, merge_additions
from converters.compaction.interface import Interface
from converters.compaction.map_folding import folded_maps
from converters.compaction.names import make_names_unique
from converters.compaction.normalise import merge_equal_clones, normalise
from converters.compaction.padding import Coupling, Layer, Widths, keep_widths
from converters.compaction.plan import Kept, Removal, RemovalPlan, Replaced, Selected, make_plan
from converters.compaction.quantised_weights import requantise_weights
from converters.compaction.rewrite import Edit, remove_dead_nodes, rewrite
from converters.compaction.selection import select_inputs
from converters.compaction.trials import try_options

__all__ = [
    "Compaction",
    "Coupling",
    "Kept",
    "Layer",
    "Removal",
    "RemovalPlan",
    "Reordered",
    "Replaced",
    "Selected",
    "Widths",
    "compact",
]


@dataclass(frozen=True)
class Compaction:
    """A compacted model and the plan that was carried out."""

    model: ir.Model
    plan: RemovalPlan


def compact(model: ir.Model, widths: Widths | None = None) -> Compaction:
    """Remove every neuron, filter, head, channel and branch that provably does not matter.

    Inputs and outputs keep their names, shapes and types, and the outputs keep their values up to
    rounding, for every input with finite activations.

    Args:
        model: the gated model; it is consumed, its graph is changed in place.
        widths: how many survivors each group of coupled axes should have at least; None removes all that can go.
    """
    graph = model.graph
    interface = Interface.of(graph)
    normalise(model)
    analysis = analyse(graph)
    reordered = order_features(graph, analysis)
    if reordered:
        analysis = analyse(graph)
    while True:
        permission, shared = try_options(analysis)
        selections = [*shared, *select_inputs(analysis, permission)]
        if len(selections) > len(shared):
            permission = Permission(analysis.relations)
            permission.solve()
        representatives = choose(analysis, permission)
        if widths is not None and keep_widths(analysis, permission, widths):
            representatives = choose(analysis, permission)
        if not need_finite_operands(analysis, permission):
            break
        for relation in analysis.relations:
            relation.forget_choices()
    plan = make_plan(analysis, permission, representatives, selections, reordered)
    rewrite(Edit(graph, analysis, permission, representatives, selections, folded_maps(analysis, permission)))
    requantise_weights(graph)
    merge_equal_clones(graph)
    merge_additions(graph)
    fold_scales(graph)
    fold_batch_norms(graph)
    remove_dead_nodes(graph)
    interface.restore(graph)
    make_names_unique(model)
    return Compaction(model, plan)
