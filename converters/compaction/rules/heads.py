"""Rules for fused attention: heads go as a whole, with their queries, keys and values.

Query head h attends with key head h // repeat. A group (one key head and its query heads) goes when none of
its outputs is needed, or all of them are zero because their values are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Facts, Liveness, Mask, Permission, rank, static_size
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, int_attribute, operand

_KEPT_WHOLE = {
    "com.microsoft::Attention": "its packed projection has no rule; run the model through plain operators",
    "com.microsoft::GroupQueryAttention": "it keeps key and value caches whose widths its caller knows",
    "com.microsoft::DecoderMaskedMultiHeadAttention": "it keeps key and value caches whose widths its caller knows",
    "com.microsoft::SkipLayerNormalization": "a sum fused with a norm has no rule; export Add and norm",
    "com.microsoft::SkipSimplifiedLayerNormalization": "a sum fused with a norm has no rule; export Add and norm",
    "com.microsoft::EmbedLayerNormalization": "an embedding fused with a norm has no rule",
}


@rule(*_KEPT_WHOLE)
def refuse_fused(node: ir.Node) -> Refusal:
    """Operators that only onnxruntime's own optimiser makes."""
    return Refusal(f"{node.op_type} is kept whole: {_KEPT_WHOLE[f'{node.domain}::{node.op_type}']}")


class Heads(Relation):
    """Axes that hold `groups` groups each, and lose whole groups only.

    Args:
        scores: axes that decide the weights (queries, keys, masks); every output of the group reads them.
        values: axis of the values, laid out as [groups, width]; None if `scores` alone make the output.
        output: axis laid out as [groups, repeat, width].
    """

    def __init__(
        self, node: ir.Node, scores: list[Axis], values: Axis | None, output: Axis, groups: int, repeat: int
    ) -> None:
        super().__init__(node, [*scores, *([] if values is None else [values]), output])
        self.scores, self.values, self.output = scores, values, output
        self.groups, self.repeat = groups, repeat

    @property
    def reason(self) -> str:
        return "heads go as a whole, and another part of the head, or of its group, stays"

    def forward(self, facts: Facts) -> None:
        if self.values is None:
            zero = np.ones(self.output.size, bool)
            for axis in self.scores:
                whole: Mask = np.logical_and.reduce(facts.is_zero(axis).reshape(self.groups, -1), axis=1)
                zero &= np.repeat(whole, self.output.size // self.groups)
        else:
            by_group = facts.is_zero(self.values).reshape(self.groups, 1, -1)
            zero = np.repeat(by_group, self.repeat, axis=1).ravel()
        facts.learn(self.output, np.where(zero, 0.0, np.nan))

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = live.needed(self.output).reshape(self.groups, self.repeat, -1)
        whole: Mask = np.logical_or.reduce(needed.reshape(self.groups, -1), axis=1)
        for axis in self.scores:
            live.need(axis, np.repeat(whole, axis.size // self.groups))
        if self.values is not None:
            live.need(self.values, needed.any(axis=1).ravel())

    def shrink(self, permission: Permission) -> None:
        stays = np.zeros(self.groups, bool)
        for axis in self.axes:
            stays |= (~permission.removable(axis)).reshape(self.groups, -1).any(axis=1)
        for axis in self.axes:
            permission.withhold(axis, np.repeat(stays, axis.size // self.groups))

    def groups_left(self, edit: Edit) -> int:
        """How many groups stay."""
        return edit.kept(self.output).size * self.groups // self.output.size


@rule("Attention")
def relate_attention(node: ir.Node) -> list[Relation] | Refusal:
    """Q: [N, S, Hq * d] or [N, Hq, S, d]; K, V likewise with Hkv heads; Y as Q, with the width of V."""
    if any(operand(node, slot) is not None for slot in (4, 5)) or _used_besides_first(node):
        return Refusal("an Attention with a cache is kept whole: its caller knows the cache's width")
    query, key, value, output = node.inputs[0], node.inputs[1], node.inputs[2], node.outputs[0]
    ranks = {rank(item) for item in (query, key, value, output) if item is not None}
    if query is None or key is None or value is None or ranks not in ({3}, {4}):
        return Refusal("the shapes around this Attention are not known")
    if ranks == {3}:
        q_heads, kv_heads = int_attribute(node, "q_num_heads", 0), int_attribute(node, "kv_num_heads", 0)
        return _relate_heads(node, query, key, value, output, 2, q_heads, kv_heads)
    q_heads, kv_heads = static_size(query, 1) or 0, static_size(key, 1) or 0
    relations = _relate_heads(node, query, key, value, output, 1, q_heads, kv_heads)
    if isinstance(relations, Refusal):
        return relations
    before, after = axis_of(value, 3), axis_of(output, 3)
    if before is not None and after is not None and before.size == after.size:
        relations.append(Tie(node, [before], [after], lambda facts: np.where(facts.is_zero(before), 0.0, np.nan)))
    return relations


def _used_besides_first(node: ir.Node) -> bool:
    return any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:])


def _relate_heads(
    node: ir.Node,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    output: ir.Value,
    dim: int,
    q_heads: int,
    kv_heads: int,
    mask_slot: int = 3,
) -> list[Relation] | Refusal:
    if kv_heads < 1 or q_heads % kv_heads:
        return Refusal(f"the numbers of heads of this {node.op_type} are not known")
    if kv_heads == 1:
        return []
    axes = [axis_of(item, dim) for item in (query, key, value, output)]
    q, k, v, y = axes
    if q is None or k is None or v is None or y is None:
        return []
    if any(axis.size % kv_heads for axis in (q, k, v)) or y.size != v.size * (q_heads // kv_heads):
        return Refusal(f"the head widths around this {node.op_type} do not fit its numbers of heads")
    scores = [q, k]
    mask = operand(node, mask_slot)
    if mask is not None:
        mask_rank = rank(mask)
        if mask_rank is None:
            return Refusal(f"the mask of this {node.op_type} has an unknown rank")
        # the mask broadcasts to [N, Hq, S, T]
        per_head = axis_of(mask, mask_rank - 3) if mask_rank >= 3 else None
        if per_head is not None:
            if per_head.size != q_heads:
                return Refusal(f"the mask of this {node.op_type} does not fit its heads")
            scores.append(per_head)
    return [Heads(node, scores, v, y, kv_heads, q_heads // kv_heads)]


@fixup("Attention")
def fix_attention(edit: Edit, node: ir.Node) -> None:
    """Count the heads that stay."""
    for relation in edit.relations(node):
        if isinstance(relation, Heads) and "q_num_heads" in node.attributes:
            left = relation.groups_left(edit)
            node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", left * relation.repeat)
            node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", left)


@rule("com.microsoft::MultiHeadAttention")
def relate_multi_head_attention(node: ir.Node) -> list[Relation] | Refusal:
    """query, key, value: [N, S, H * d]; everything else that the operator can take is kept whole."""
    values = [operand(node, slot) for slot in range(3)]
    query, key, value = values
    extra = any(operand(node, slot) is not None for slot in range(3, len(node.inputs)) if slot not in (4, 5))
    output = node.outputs[0]
    if query is None or key is None or value is None or extra or _used_besides_first(node):
        return Refusal("a MultiHeadAttention with packed inputs, a bias or a cache is kept whole")
    if {rank(item) for item in (query, key, value, output)} != {3}:
        return Refusal("the shapes around this MultiHeadAttention are not known")
    heads = int_attribute(node, "num_heads", 0)
    return _relate_heads(node, query, key, value, output, 2, heads, heads, mask_slot=5)


@rule("RotaryEmbedding")
def relate_rotary(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, H, S, d], or [N, S, H * d] with num_heads; features of a head are turned in pairs and stay."""
    x, output = node.inputs[0], node.outputs[0]
    if x is None or rank(x) not in (3, 4) or rank(x) != rank(output):
        return Refusal("the shapes around this RotaryEmbedding are not known")
    dim = 1 if rank(x) == 4 else 2
    before, after = axis_of(x, dim), axis_of(output, dim)
    if before is None or after is None:
        return []
    heads = before.size if dim == 1 else int_attribute(node, "num_heads", 0)
    if heads < 2 or before.size % heads:
        return []
    return [Heads(node, [before], None, after, heads, 1)]


@fixup("RotaryEmbedding", "com.microsoft::MultiHeadAttention")
def fix_num_heads(edit: Edit, node: ir.Node) -> None:
    """Count the heads that stay."""
    for relation in edit.relations(node):
        if isinstance(relation, Heads) and int_attribute(node, "num_heads", 0):
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", relation.groups_left(edit))
