"""Would anyone notice if a rule of the engine were broken? Each rule is broken on purpose, and a case must fail."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cases import CASES
from judge import Judgement

from converters.compaction import compact, maps, relations, split_views, strided_views
from converters.compaction.axes import Permission, axes_of
from converters.compaction.registry import FIXUPS, RULES
from converters.compaction.relations import Relation, Unread
from converters.compaction.rules import convolution, depthwise

# Rules and fixups that no case decides yet, each with its reason.
_RANDOM = "random numbers cannot be compared"
_ELSEWHERE = "an operator of onnxruntime alone, which the oracle does not know"
UNGUARDED_RULES: dict[str, str] = {
    **dict.fromkeys(("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"), _RANDOM),
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike"), _RANDOM),
    **{name: _ELSEWHERE for name in RULES if name.startswith("com.microsoft")},
    "SimplifiedLayerNormalization": _ELSEWHERE,
    "Range": "no axis of it has a known length unless it is folded",
    "Identity": "identities are taken out before any rule is asked",
    "ConstantOfShape": "its shape is evaluated beforehand in every case",
}
UNGUARDED_FIXUPS: dict[str, str] = {
    **{name: _ELSEWHERE for name in FIXUPS if name.startswith("com.microsoft")},
    "SimplifiedLayerNormalization": _ELSEWHERE,
}
# Broken, a rule is seen by its first few cases or by none.
MOST_CASES = 40


def operators(graph: onnx.GraphProto) -> set[str]:
    """Operator types of a graph and of its bodies."""
    found = set()
    for node in graph.node:
        found.add(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= operators(attribute.g)
    return found


@functools.cache
def cases_by_operator() -> dict[str, list[str]]:
    """For each operator the cases that contain it, those whose removal is counted first."""
    found: dict[str, list[str]] = {}
    for name, case in sorted(CASES.items(), key=lambda item: item[1].params is None):
        model = case.model()
        inlined = {node.op_type for function in model.functions for node in function.node}
        for operator in operators(model.graph) | inlined:
            found.setdefault(operator, []).append(name)
    return found


def somebody_notices(names: Iterable[str]) -> bool:
    """Whether the function of one of these cases is not kept, or its compaction fails."""
    for name in names:
        judged = Judgement(CASES[name], compact)
        try:
            if judged.rounded() is not None or judged.exact() is not None:
                return True
        except Exception:  # a broken engine may fail in any way; what counts is that it is seen
            return True
    return False


def says_nothing_is_read(node: ir.Node) -> list[Relation]:
    """A rule that lets every axis around the node go."""
    touched = [axis for value in (*node.inputs, *node.outputs) for axis in axes_of(value)]
    return [Unread(node, axis) for axis in dict.fromkeys(touched)]


def test_unbroken_engine_is_not_accused() -> None:
    assert not somebody_notices(
        ["gemm_gate_sigmoid_gemm", "conv_gate_norm_relu_padded_conv", "split_into_uneven_parts"]
    )


@pytest.mark.parametrize("operator", sorted(RULES))
def test_rule_that_says_nothing_is_read_is_noticed(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if operator in UNGUARDED_RULES:
        pytest.skip(UNGUARDED_RULES[operator])
    monkeypatch.setitem(RULES, operator, says_nothing_is_read)
    assert somebody_notices(cases_by_operator().get(operator, [])[:MOST_CASES])


@pytest.mark.parametrize("operator", sorted(FIXUPS))
def test_fixup_that_is_missing_is_noticed(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if operator in UNGUARDED_FIXUPS:
        pytest.skip(UNGUARDED_FIXUPS[operator])
    monkeypatch.delitem(FIXUPS, operator)
    assert somebody_notices(cases_by_operator().get(operator, [])[:MOST_CASES])


def kinds_of_relation() -> list[type[Relation]]:
    """Every relation class that defines a step of its own."""
    pending, found = [Relation], []
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        found.append(kind)
    return [kind for kind in found if kind is not Relation]


STEPS = [(kind, step) for kind in kinds_of_relation() for step in ("require", "shrink") if step in vars(kind)]


@pytest.mark.parametrize(("kind", "step"), STEPS, ids=lambda item: item if isinstance(item, str) else item.__name__)
def test_step_of_a_relation_that_does_nothing_is_noticed(
    kind: type[Relation], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, step, vars(Relation)[step])
    # deep cases first: only in them can a lost need do harm
    assert somebody_notices(sorted(CASES, key=lambda name: CASES[name].family != "depth"))


def test_contraction_that_folds_every_constant_into_its_bias_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = relations.Contract.__init__

    def always_bias(self: relations.Contract, *args: object, **options: object) -> None:
        original(self, *args, **{**options, "fold": "bias"})  # type: ignore[arg-type]

    monkeypatch.setattr(relations.Contract, "__init__", always_bias)
    assert somebody_notices(["conv_gate_norm_relu_padded_conv"])


def test_strided_view_that_is_believed_to_count_in_order_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided_views, "_counts_up_to", lambda index, source: True)
    assert somebody_notices(["strided_view_that_reverses_each_row"])


def test_parts_of_a_joint_projection_that_are_mixed_up_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_views._split

    def reversed_parts(*operands: object) -> list[ir.Value]:
        return list(reversed(split(*operands)))  # type: ignore[arg-type]

    monkeypatch.setattr(split_views, "_split", reversed_parts)
    assert somebody_notices(["joint_projection_divided_by_slices_with_closed_values"])


def test_rows_that_keep_their_order_where_parts_lie_inside_heads_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_views, "reorder_rows", lambda graph, value, dim, order: True)
    assert somebody_notices(["joint_projection_divided_inside_each_head_with_closed_values"])


def test_map_of_a_grouped_convolution_that_is_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations.Grouped, "maps_to_fold", lambda self, permission: np.zeros(0, np.int64))
    assert somebody_notices(["constants_in_front_of_a_padded_grouped_conv_of_static_size"])


def test_multiplier_whose_outputs_read_the_wrong_inputs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations.Grouped, "owner", lambda self: np.arange(self.output.size) % self.groups)
    assert somebody_notices(["multiplier_between_streams"])


@pytest.mark.parametrize(
    "case", ["multiplier_between_streams", "transposed_multiplier_between_streams", "multiplier_of_maps"]
)
def test_filters_of_a_multiplier_whose_inputs_are_gone_are_zero_or_noticed(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "_outputs_without_input", lambda edit, relation: np.zeros(0, np.int64))
    assert somebody_notices([name for name in CASES if name.startswith(case)])


def test_constants_of_a_multiplier_that_are_not_folded_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depthwise, "add_to_bias", lambda edit, node, total, axis: None)
    assert somebody_notices(["multiplier_of_constants_without_padding"])


def test_constants_of_a_multiplier_that_are_folded_in_front_of_padding_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "_meets_border", lambda node: False)
    assert somebody_notices(["multiplier_of_constants_with_padding"])


def test_maps_of_a_multiplier_that_are_left_out_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations.Grouped, "maps_to_fold", lambda self, permission: np.zeros(0, np.int64))
    assert somebody_notices(["multiplier_of_maps_that_do_not_depend_on_the_input"])


def test_inputs_of_a_multiplier_that_go_although_they_are_read_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink = relations.Grouped.shrink

    def forgetful(self: relations.Grouped, permission: Permission) -> None:
        if not self.spread:
            shrink(self, permission)

    monkeypatch.setattr(relations.Grouped, "shrink", forgetful)
    assert somebody_notices(["multiplier_that_alone_reads_its_inputs"])


def test_mean_of_a_map_that_is_not_learnt_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps.Maps, "_learn_means", lambda self, node: True)
    assert Judgement(CASES["squeeze_excite_of_maps_that_do_not_depend_on_the_input"], compact).removed() is not None


def test_mean_of_a_map_over_one_dimension_taken_for_one_over_space_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_reduced", lambda node, size: set(range(2, size)))
    assert somebody_notices(["mean_over_the_rows_of_maps_that_do_not_depend_on_the_input"])


def test_maps_whose_order_a_shuffle_is_believed_to_keep_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = maps._routes

    def unmoved(output: ir.Value, stated: Sequence[Relation]) -> list[maps.Route]:
        return [maps.Route(r.source, np.sort(r.origin), r.to) for r in routes(output, stated)]

    monkeypatch.setattr(maps, "_routes", unmoved)
    assert somebody_notices(["channel_shuffle_of_maps_that_do_not_depend_on_the_input"])


def test_map_that_a_view_is_believed_to_keep_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmoved(self: maps.Maps, node: ir.Node, fixed: np.ndarray, evaluated: dict[ir.Value, maps.Map]) -> maps.Map:
        return self._rows(node.inputs[0], fixed, evaluated).reshape(fixed.size, -1)[:, ::-1]

    monkeypatch.setattr(maps.Maps, "_rearranged", unmoved)
    assert somebody_notices(["tokens_of_maps_that_do_not_depend_on_the_input"])


def test_average_over_hanging_windows_taken_for_a_convolution_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_has_plain_windows", lambda node: True)
    assert somebody_notices(["average_pool_of_constants_with_hanging_windows"])
