"""Rules for fused attention: heads go with their queries, keys and values, and features go from all heads.

Query head h attends with key head h // repeat. A group (one key head and its query heads) goes when none of
its outputs is needed, or all of them are zero because their values are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Facts, Liveness, Mask, rank, static_size
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Contract, Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, float_attribute, int_attribute, operand
from converters.compaction.rules.head_relations import HeadGrid, Heads

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
    features, others = axis_of(query, 3), axis_of(key, 3)
    if features is not None and others is not None and features.size == others.size:
        relations.append(Contract(node, features, others, fold="zero", reads=_reads_all(features.size)))
    return relations


def _reads_all(size: int) -> Callable[[Liveness, Facts], Mask]:
    return lambda live, facts: np.ones(size, bool)


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
    if kv_heads == 1 and dim == 1:
        return []
    axes = [axis_of(item, dim) for item in (query, key, value, output)]
    q, k, v, y = axes
    if q is None or k is None or v is None or y is None:
        return []
    repeat = q_heads // kv_heads
    if any(axis.size % kv_heads for axis in (q, k, v)) or y.size != v.size * repeat or q.size != k.size * repeat:
        return Refusal(f"the head widths around this {node.op_type} do not fit its numbers of heads")
    per_head: list[Axis] = []
    mask = operand(node, mask_slot)
    if mask is not None:
        mask_rank = rank(mask)
        if mask_rank is None:
            return Refusal(f"the mask of this {node.op_type} has an unknown rank")
        # the mask broadcasts to [N, Hq, S, T]
        heads_axis = axis_of(mask, mask_rank - 3) if mask_rank >= 3 else None
        if heads_axis is not None:
            if heads_axis.size != q_heads:
                return Refusal(f"the mask of this {node.op_type} does not fit its heads")
            per_head.append(heads_axis)
    if dim == 1:
        return [Heads(node, [q, k, *per_head], v, y, kv_heads, repeat)]
    return [HeadGrid(node, q, k, v, y, per_head, kv_heads, repeat)]


@fixup("Attention")
def fix_attention(edit: Edit, node: ir.Node) -> None:
    """Count the heads that stay, and scale the scores as before."""
    for relation in edit.relations(node):
        if isinstance(relation, HeadGrid):
            left = relation.groups_left(edit)
            _keep_scale(edit, node, relation.key.size // relation.groups, edit.kept(relation.key).size // left)
            node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", left * relation.repeat)
            node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", left)
        elif isinstance(relation, Contract):
            _keep_scale(edit, node, relation.data.size, edit.kept(relation.data).size)


def _keep_scale(edit: Edit, node: ir.Node, before: int, after: int) -> None:
    """The scores are divided by the root of the number of features, unless the node says by what."""
    if before == after or float_attribute(node, "scale", 0.0):
        return
    query = node.inputs[0]
    assert query is not None
    if node.outputs[0].dtype == ir.DataType.DOUBLE:
        # an attribute has no float64, so the queries are scaled instead
        factor = edit.add_initializer(f"{node.outputs[0].name}_scale", np.array(math.sqrt(after / before)))
        assert query.shape is not None
        sizes = [edit.new_size(query, dim) for dim in range(len(query.shape))]
        shape = ir.Shape([old if new is None else new for old, new in zip(query.shape, sizes, strict=True)])
        node.replace_input_with(0, edit.insert_before(node, "Mul", [query, factor], shape))
    else:
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / math.sqrt(before))


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
    """Count the heads that stay, and scale the scores as before."""
    for relation in edit.relations(node):
        if isinstance(relation, HeadGrid):
            left = relation.groups_left(edit)
            _keep_scale(edit, node, relation.key.size // relation.groups, edit.kept(relation.key).size // left)
        if isinstance(relation, Heads) and int_attribute(node, "num_heads", 0):
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", relation.groups_left(edit))
