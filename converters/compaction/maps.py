"""Which channels are the same for every input although they vary over space, and what do they hold?

A channel that is constant before a padded convolution is not constant behind it: its border sees zeros. Where
height and width are static it is still one fixed map, and so is everything computed from it channel by
channel. Such a map can be evaluated once and added behind the convolution that reads it.

Independence is propagated forwards as one flag per channel; numbers are computed, in float64, only for the
maps that somebody folds. Constants (`Facts`) are the special case of maps that do not vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Facts, Mask, array_of, as_float64, axes_of, is_constant, rank, static_size
from converters.compaction.map_convolution import Map, auto_pad, convolve, groups_of, ints_of
from converters.compaction.relations import Concatenate, Relation, Same, Select

_CHANNEL = 1


class Route(NamedTuple):
    """Channels `to` of a value are channels `origin` of `source`, unchanged (Concat, Split, Slice, Gather)."""

    source: ir.Value
    origin: NDArray[np.int64]
    to: NDArray[np.int64]


class Maps:
    """Input-independent channels of values [N, C, *space] with static C and space.

    Behind a Transpose or a Reshape the channels may be another dimension ([N, S, C] for tokens); a map is written
    [C, *space] all the same, space being the other dimensions in order.

    Args:
        functions: elementwise operators by name, as functions of float64 arrays, given the node.
    """

    def __init__(self, facts: Facts, functions: dict[str, Callable[[ir.Node], Callable[..., Map]]]) -> None:
        self._facts = facts
        self._functions = functions
        self._varying: dict[ir.Value, Mask] = {}
        self._routes: dict[ir.Value, tuple[Route, ...]] = {}
        self._channel: dict[ir.Value, int] = {}

    def channel(self, value: ir.Value) -> int:
        """Which dimension of the value holds the channels."""
        return self._channel.get(value, _CHANNEL)

    def routes(self, value: ir.Value) -> tuple[Route, ...]:
        """Where the value's channels come from, if its node only rearranges those of others."""
        return self._routes.get(value, ())

    def varying(self, value: ir.Value | None) -> Mask | None:
        """Channels that are fixed but not constant, shape [C]; None when there are none."""
        return None if value is None else self._varying.get(value)

    def fixed(self, value: ir.Value, channel: int | None = None) -> Mask:
        """Channels that are the same for every input, shape [C]; `channel` if they are to be another dimension."""
        own = self.channel(value)
        axis = Axis(value, own if channel is None else channel)
        known = self._facts.constants(axis)
        mask: Mask = np.zeros(axis.size, bool) if known is None else np.isfinite(known)
        varying = self._varying.get(value)
        return mask if varying is None or axis.dim != own else mask | varying

    def forward(self, node: ir.Node, stated: Sequence[Relation]) -> None:
        """Find out which channels of the node's outputs are fixed; runs after the node's constants are known.

        Args:
            stated: the node's relations; for an operator that rearranges channels they say which go where.
        """
        if node.domain not in ("", "ai.onnx") or not node.inputs or not node.outputs:
            return
        output = node.outputs[0]
        if node.op_type in ("Concat", "Split", "Slice", "Gather"):
            for output in node.outputs:
                self._rearrange(output, stated)
            return
        if node.op_type in ("Reshape", "Transpose"):
            self._view(node, stated)
            return
        if node.op_type in ("ReduceMean", "GlobalAveragePool") and self._learn_means(node):
            return
        channels = {self.channel(value) for value in node.inputs if value is not None and value in self._varying}
        if len(channels) > 1:
            return
        channel = channels.pop() if channels else _CHANNEL
        if not _is_spatial(output, channel) or not any(
            _is_spatial(v, channel) and self.fixed(v, channel).any() for v in node.inputs if v
        ):
            return
        fixed: Mask | None = None
        if node.op_type in self._functions:
            fixed = self._elementwise_fixed(node, channel)
        elif channel != _CHANNEL:
            return
        elif node.op_type == "Conv":
            fixed = self._conv_fixed(node)
        elif node.op_type == "BatchNormalization":
            parameters = all(is_constant(value) for value in node.inputs[1:])
            fixed = self.fixed(node.inputs[0]) if parameters and node.inputs[0] is not None else None
        elif node.op_type == "AveragePool":
            fixed = self.fixed(node.inputs[0]) if node.inputs[0] is not None and _has_plain_windows(node) else None
        if fixed is not None:
            self._learn(output, channel, fixed)

    def _learn(self, output: ir.Value, channel: int, fixed: Mask) -> None:
        varying = fixed & ~self._facts.is_known(Axis(output, channel))
        if varying.any():
            self._varying[output], self._channel[output] = varying, channel

    def _view(self, node: ir.Node, stated: Sequence[Relation]) -> None:
        """Channels stay as they are where they are one dimension before and after; the batch comes first."""
        x, output = node.inputs[0], node.outputs[0]
        varying = self.varying(x)
        if x is None or varying is None:
            return
        source = Axis(x, self.channel(x))
        moved = [r.axes[1] for r in stated if isinstance(r, Same) and r.axes[0] == source]
        if len(moved) != 1 or moved[0].dim == 0 or not _is_spatial(output, moved[0].dim):
            return
        permutation = ints_of(node, "perm")
        if node.op_type == "Transpose" and (permutation is None or permutation[0] != 0):
            return
        if _elements(x) != _elements(output):
            return  # some of the batch went elsewhere
        self._learn(output, moved[0].dim, varying)

    def _rearrange(self, output: ir.Value, stated: Sequence[Relation]) -> None:
        if not _is_spatial(output):
            return
        routes = tuple(
            r
            for r in _routes(output, stated)
            if self.channel(r.source) == _CHANNEL and _is_spatial(r.source) and self.fixed(r.source).any()
        )
        fixed = np.zeros(Axis(output, _CHANNEL).size, bool)
        for route in routes:
            fixed[route.to] = self.fixed(route.source)[route.origin]
        varying = fixed & ~self._facts.is_known(Axis(output, _CHANNEL))
        if varying.any():
            self._varying[output], self._routes[output] = varying, routes

    def _learn_means(self, node: ir.Node) -> bool:
        """The mean of a map over space is a constant: whether the node is such a mean."""
        x, output = node.inputs[0], node.outputs[0]
        varying = self.varying(x)
        if (
            x is None
            or varying is None
            or self.channel(x) != _CHANNEL
            or (rank(output) or 0) < 2
            or static_size(output, _CHANNEL) != varying.size
        ):
            return False
        space = tuple(range(2, rank(x) or 0))
        if node.op_type == "ReduceMean" and _reduced(node, len(space) + 2) != set(space):
            return False
        means = self.evaluate(x).mean(axis=tuple(dim - 1 for dim in space))
        self._facts.learn(Axis(output, _CHANNEL), np.where(varying, means, np.nan))
        return True

    def _conv_fixed(self, node: ir.Node) -> Mask | None:
        x, weight = node.inputs[0], array_of(node.inputs[1])
        if x is None or weight is None or not _has_plain_padding(node) or not _is_spatial(x):
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and not is_constant(node.inputs[2]):
            return None
        groups = groups_of(node)
        unknown = ~self.fixed(x).reshape(groups, -1)
        rows = weight.reshape(groups, -1, *weight.shape[1:])
        fixed = np.ones(rows.shape[:2], bool)
        for group in np.flatnonzero(unknown.any(axis=1)):
            # most rows read an unknown channel, which the first few show
            for channels in (np.flatnonzero(unknown[group])[:4], np.flatnonzero(unknown[group])[4:]):
                left = np.flatnonzero(fixed[group])
                if left.size and channels.size:
                    part = rows[group][left][:, channels] != 0
                    fixed[group, left] = ~part.any(axis=tuple(range(1, part.ndim)))
        return fixed.ravel()

    def _elementwise_fixed(self, node: ir.Node, channel: int) -> Mask | None:
        output = node.outputs[0]
        size = Axis(output, channel).size
        fixed = np.ones(size, bool)
        for value in node.inputs:
            if value is None:
                continue
            if is_constant(value):
                if not _broadcasts_over_batch(value, output):
                    return None
            elif _is_spatial(value, channel) and rank(value) == rank(output) and static_size(value, channel) == size:
                fixed &= self.fixed(value, channel)
            else:
                return None
        return fixed

    def tensor(self, value: ir.Value) -> Map:
        """A value all of whose channels are fixed, in its own layout, shape [1, ...]."""
        return np.moveaxis(self.evaluate(value), 0, self.channel(value) - 1)[None]

    def evaluate(self, value: ir.Value) -> Map:
        """Fixed channels of the value, shape [C, *space]; zero where a channel is not fixed.

        Nothing is remembered: maps can be larger than the weights, and few are asked for twice.
        """
        fixed = self.fixed(value)
        rows = self._evaluate_fixed(value)
        result = np.zeros((fixed.size, *rows.shape[1:]))
        result[fixed] = rows
        return result

    def _evaluate_fixed(self, value: ir.Value) -> Map:
        """The fixed channels alone, shape [number of fixed channels, *space]."""
        evaluated: dict[ir.Value, Map] = {}
        pending = [value]
        while pending:  # depth first without recursion, as graphs may be deep
            current = pending[-1]
            missing = [v for v in self._sources(current) if v not in evaluated]
            if missing:
                pending += missing
            else:
                if current not in evaluated:
                    evaluated[current] = self._compute(current, evaluated)
                pending.pop()
        return evaluated[value]

    def _sources(self, value: ir.Value) -> list[ir.Value]:
        node = value.producer()
        if value not in self._varying or node is None:
            return []
        if value in self._routes:
            return list(dict.fromkeys(route.source for route in self._routes[value]))
        if node.op_type in self._functions:  # operands that are constant channel by channel are taken from the facts
            return list(dict.fromkeys(v for v in node.inputs if v is not None and v in self._varying))
        return [node.inputs[0]] if node.inputs[0] is not None else []

    def _compute(self, value: ir.Value, evaluated: dict[ir.Value, Map]) -> Map:
        assert value.shape is not None
        channel = self.channel(value)
        fixed = np.flatnonzero(self.fixed(value))
        space = [d for dim, d in enumerate(value.shape) if dim not in (0, channel) and isinstance(d, int)]
        constants = self._facts.constants(Axis(value, channel))
        varying = self._varying.get(value)
        node = value.producer()
        if varying is None or node is None:
            assert constants is not None
            return np.broadcast_to(constants[fixed].reshape(-1, *[1] * len(space)), (fixed.size, *space))
        if value in self._routes:
            computed = np.zeros((fixed.size, *space))
            for route in self._routes[value]:
                here = self.fixed(route.source)[route.origin] & np.isin(route.to, fixed)
                rows = self._rows(route.source, route.origin[here], evaluated)
                computed[np.searchsorted(fixed, route.to[here])] = rows
        elif node.op_type in ("Reshape", "Transpose"):
            computed = self._rearranged(node, fixed, evaluated)
        elif node.op_type == "Conv":
            computed = self._convolve(node, fixed, evaluated)
        elif node.op_type == "BatchNormalization":
            computed = self._normalise(node, fixed, evaluated)
        elif node.op_type == "AveragePool":
            computed = self._average(node, fixed, evaluated)
        else:
            computed = self._apply(node, fixed, channel, evaluated)
        computed = np.broadcast_to(computed, (fixed.size, *space))
        if constants is None:
            return computed
        # what is known to be constant is taken from the facts, to the last digit
        known = constants[fixed].reshape(-1, *[1] * len(space))
        return np.where(varying[fixed].reshape(known.shape), computed, known)

    def _rows(self, value: ir.Value, wanted: NDArray[np.int64], evaluated: dict[ir.Value, Map]) -> Map:
        """These channels of the value; zeros for those that are not fixed.

        A reader may be constant where the value is not (a product by zero), and then its number is a fact.
        """
        fixed = np.flatnonzero(self.fixed(value))
        if np.array_equal(fixed, wanted):
            return evaluated[value]
        here = np.isin(wanted, fixed)
        rows = np.zeros((wanted.size, *evaluated[value].shape[1:]))
        rows[here] = evaluated[value][np.searchsorted(fixed, wanted[here])]
        return rows

    def _convolve(self, node: ir.Node, fixed: NDArray[np.int64], evaluated: dict[ir.Value, Map]) -> Map:
        x, weight = node.inputs[0], array_of(node.inputs[1])
        assert x is not None
        assert weight is not None
        if groups_of(node) == weight.shape[0] and weight.shape[1] == 1:
            y = convolve(node, self._rows(x, fixed, evaluated), as_float64(weight[fixed]), fixed.size)
        else:
            rows, channels = evaluated[x], self.fixed(x)
            data = np.zeros((channels.size, *rows.shape[1:]))
            data[channels] = rows
            y = convolve(node, data, as_float64(weight))[fixed]
        bias = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
        return y if bias is None else y + as_float64(bias)[fixed].reshape(-1, *[1] * (y.ndim - 1))

    def _normalise(self, node: ir.Node, fixed: NDArray[np.int64], evaluated: dict[ir.Value, Map]) -> Map:
        x = node.inputs[0]
        assert x is not None
        data = self._rows(x, fixed, evaluated)
        arrays = [array_of(value) for value in node.inputs[1:5]]
        scale, bias, mean, variance = (
            as_float64(a)[fixed].reshape(-1, *[1] * (data.ndim - 1)) for a in arrays if a is not None
        )
        epsilon = node.attributes.get("epsilon")
        return (data - mean) / np.sqrt(variance + (1e-5 if epsilon is None else epsilon.as_float())) * scale + bias

    def _average(self, node: ir.Node, fixed: NDArray[np.int64], evaluated: dict[ir.Value, Map]) -> Map:
        x = node.inputs[0]
        assert x is not None
        data = self._rows(x, fixed, evaluated)
        kernel = ints_of(node, "kernel_shape") or []
        total = convolve(node, data, np.ones((fixed.size, 1, *kernel)), fixed.size)
        counts_padding = node.attributes.get("count_include_pad")
        if counts_padding is not None and counts_padding.as_int():
            return total / math.prod(kernel)
        return total / convolve(node, np.ones((1, *data.shape[1:])), np.ones((1, 1, *kernel)), 1)

    def _rearranged(self, node: ir.Node, fixed: NDArray[np.int64], evaluated: dict[ir.Value, Map]) -> Map:
        """A Transpose or a Reshape, with the batch left out and as many channels as are fixed."""
        x, output = node.inputs[0], node.outputs[0]
        assert x is not None
        assert output.shape is not None
        channel = self.channel(output)
        data = np.moveaxis(self._rows(x, fixed, evaluated), 0, self.channel(x) - 1)
        permutation = ints_of(node, "perm")
        if node.op_type == "Transpose":
            assert permutation is not None
            moved = data.transpose([dim - 1 for dim in permutation[1:]])
        else:
            dims = [d for d in list(output.shape)[1:] if isinstance(d, int)]
            moved = data.reshape([fixed.size if dim == channel - 1 else d for dim, d in enumerate(dims)])
        return np.moveaxis(moved, channel - 1, 0)

    def _apply(self, node: ir.Node, fixed: NDArray[np.int64], channel: int, evaluated: dict[ir.Value, Map]) -> Map:
        size = rank(node.outputs[0]) or 0
        operands = []
        for value in node.inputs:
            if value is None:
                continue
            array = array_of(value)
            if array is not None:
                # broadcast from the right; the batch dimension, of length 1, goes
                numbers = as_float64(array).reshape([1] * (size - array.ndim) + list(array.shape))[0]
                numbers = np.moveaxis(numbers, channel - 1, 0)
                operands.append(numbers[fixed] if numbers.shape[0] > 1 else numbers)
            elif value in self._varying:
                operands.append(self._rows(value, fixed, evaluated))
            else:
                known = self._facts.constants(Axis(value, channel))
                assert known is not None
                operands.append(known[fixed].reshape(-1, *[1] * (size - 2)))
        with np.errstate(all="ignore"):
            return np.asarray(self._functions[node.op_type](node)(*operands), np.float64)


def _routes(output: ir.Value, stated: Sequence[Relation]) -> list[Route]:
    """Where the output's channels come from, as long as nothing moves along any other dimension."""
    channels = Axis(output, _CHANNEL)
    for relation in stated:
        if isinstance(relation, Concatenate) and relation.output == channels:
            return [
                Route(axis.value, np.arange(axis.size), np.arange(where.start, where.stop))
                for axis, where in relation.parts
                if axis is not None
            ]
    for relation in stated:
        if isinstance(relation, Select) and relation.output == channels and relation.source.dim == _CHANNEL:
            source = relation.source.value
            same = {r.axes for r in stated if isinstance(r, Same)}
            if all((Axis(source, axis.dim), axis) in same for axis in axes_of(output) if axis != channels):
                to = np.flatnonzero(relation.index >= 0)
                return [Route(source, relation.index[to], to)]
    return []


def _is_spatial(value: ir.Value | None, channel: int = _CHANNEL) -> bool:
    """[N, C, *space] with static C > 1 and static space, or C in another place."""
    if value is None or value.shape is None or len(value.shape) < 3 or channel >= len(value.shape):
        return False
    return all(isinstance(dim, int) for dim in list(value.shape)[1:]) and value.shape[channel] != 1


def _elements(value: ir.Value) -> int:
    """Elements of one example; all dimensions but the batch are static."""
    return math.prod(dim for dim in list(value.shape or ())[1:] if isinstance(dim, int))


def _broadcasts_over_batch(constant: ir.Value, output: ir.Value) -> bool:
    """Whether the constant is the same for every example of the batch."""
    size, out_rank = rank(constant), rank(output)
    return size is not None and out_rank is not None and (size < out_rank or static_size(constant, 0) == 1)


def _has_plain_padding(node: ir.Node) -> bool:
    return auto_pad(node) in ("NOTSET", "VALID")


def _has_plain_windows(node: ir.Node) -> bool:
    """Padding is given in numbers, no window hangs over the end, and each meets the input."""
    kernel, pads = ints_of(node, "kernel_shape") or [], ints_of(node, "pads") or []
    rounded_up = node.attributes.get("ceil_mode")
    if not kernel or not _has_plain_padding(node) or (rounded_up is not None and rounded_up.as_int()):
        return False
    return all(pad < kernel[position % len(kernel)] for position, pad in enumerate(pads))


def _reduced(node: ir.Node, size: int) -> set[int] | None:
    """The dimensions that a ReduceMean removes, None when they are not constant."""
    given = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    dims = ints_of(node, "axes") if given is None else [int(dim) for dim in given.ravel()]
    return None if not dims else {dim % size for dim in dims}
