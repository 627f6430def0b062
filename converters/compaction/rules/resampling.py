"""Rules for operators that change height and width: Resize, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Constants, Facts, array_of, as_float64, axes_of, rank, static_size
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Relation, Select, Tie, Whole
from converters.compaction.resize_sizes import parts_of
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, constant_ints, int_attribute, ints_attribute, operand
from converters.compaction.rules.common import string_attribute as string


@rule("Resize")
def relate_resize(node: ir.Node) -> list[Relation] | Refusal:
    """Axes that keep their size are tied; interpolation weights sum to 1, so a constant stays a constant."""
    x, output = node.inputs[0], node.outputs[0]
    size = rank(x) if x is not None else None
    if x is None or size is None or rank(output) != size:
        return Refusal("the shapes around this Resize are not known")
    same = _unscaled_dims(node, size)
    if same is None:
        return Refusal("the scales or sizes of this Resize are computed at run time")
    # tf_crop_and_resize writes another number outside of the region
    keeps_constants = string(node, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
    relations: list[Relation] = []
    for dim in same:
        source, target = axis_of(x, dim), axis_of(output, dim)
        if source is None or target is None or source.size != target.size:
            continue

        def transfer(facts: Facts, source: Axis = source) -> Constants | None:
            return facts.constants(source) if keeps_constants else None

        relations.append(Tie(node, [source], [target], transfer))
    return relations


def _unscaled_dims(node: ir.Node, size: int) -> list[int] | None:
    """Dimensions that the node copies one to one; None when that is decided at run time."""
    axes = [axis % size for axis in ints_attribute(node, "axes") or range(size)]
    unnamed = [dim for dim in range(size) if dim not in axes]
    scales, sizes = array_of(operand(node, 2)), _target_sizes(node)
    if sizes is not None:
        x = node.inputs[0]
        if len(sizes) != len(axes):
            return None
        return sorted([*unnamed, *(dim for dim, new in zip(axes, sizes, strict=True) if static_size_is(x, dim, new))])
    if scales is None or scales.size != len(axes):
        return None
    numbers = as_float64(scales).ravel()
    return sorted([*unnamed, *(dim for dim, scale in zip(axes, numbers, strict=True) if scale == 1)])


def _target_sizes(node: ir.Node) -> list[int | None] | None:
    """The target sizes as far as they are numbers, None if the node has no sizes or nothing is known of them."""
    constant = constant_ints(node, 3)
    if constant is not None:
        return list(constant)
    parts = parts_of(operand(node, 3))
    if parts is None:
        return None
    sizes: list[int | None] = []
    for part in parts:
        array = array_of(part.value)
        sizes += [None] * part.length if array is None else [int(number) for number in array.ravel()]
    return sizes


def static_size_is(value: ir.Value | None, dim: int, size: int | None) -> bool:
    """Whether the dimension is known to have this size."""
    return size is not None and value is not None and static_size(value, dim) == size


@fixup("Resize")
def fix_resize(edit: Edit, node: ir.Node) -> None:
    """Write the new widths into the target sizes."""
    output, sizes = node.outputs[0], operand(node, 3)
    if sizes is None or not edit.is_cut(output):
        return
    assert output.shape is not None
    axes = [axis % len(output.shape) for axis in ints_attribute(node, "axes") or range(len(output.shape))]

    def renewed(numbers: list[int], dims: list[int]) -> NDArray[np.int64]:
        wanted = [edit.new_size(output, dim) for dim in dims]
        return np.array([old if new is None else new for old, new in zip(numbers, wanted, strict=True)], np.int64)

    constant = constant_ints(node, 3)
    if constant is not None:
        edit.set_input(node, 3, renewed(constant, axes))
        return
    parts = parts_of(sizes)
    assert parts is not None
    new: list[ir.Value] = []
    for part in parts:
        array = array_of(part.value)
        if array is None:
            new.append(part.value)
        else:
            numbers = renewed([int(number) for number in array.ravel()], axes[part.start : part.start + part.length])
            new.append(edit.add_initializer(str(part.value.name), numbers))
    edit.replace_shape_concat(node, 3, new, [None] * len(new), length=len(axes))


@rule("DepthToSpace")
def relate_depth_to_space(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, b*b*C, H, W] -> [N, C, b*H, b*W]; output channel c is made of b*b input channels."""
    x, output = node.inputs[0], node.outputs[0]
    before, after = axis_of(x, 1), axis_of(output, 1)
    area = int_attribute(node, "blocksize", 1) ** 2
    out_size = static_size(output, 1)
    if x is None or before is None or out_size is None or before.size != area * out_size:
        return Refusal("the channel count of this DepthToSpace is not known")
    if after is None:
        return _batch_only(node, x, output)
    place = np.arange(before.size)
    owner = place % out_size if string(node, "mode", "DCR") == "DCR" else place // area
    return [Whole(node, before, after, owner), *_batch_only(node, x, output)]


@rule("SpaceToDepth")
def relate_space_to_depth(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, H, W] -> [N, b*b*C, H/b, W/b]; output channel k is a part of input channel k mod C."""
    x, output = node.inputs[0], node.outputs[0]
    before, after = axis_of(x, 1), axis_of(output, 1)
    area = int_attribute(node, "blocksize", 1) ** 2
    if x is None or before is None or after is None or after.size != area * before.size:
        return Refusal("the channel count of this SpaceToDepth is not known")
    index = np.arange(after.size) % before.size
    return [Select(node, before, after, index, free=False), *_batch_only(node, x, output)]


def _batch_only(node: ir.Node, x: ir.Value, output: ir.Value) -> list[Relation]:
    return [
        Tie(node, [axis], [Axis(output, 0)])
        for axis in axes_of(x)
        if axis.dim == 0 and static_size(output, 0) == axis.size
    ]
