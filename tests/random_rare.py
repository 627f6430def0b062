"""Which rarer operations can a random program contain? The same conventions as in `random_graphs`."""

from __future__ import annotations

import numpy as np
from cases.table import weight
from random_graphs import Graph, Operation, Step, Value, channel_axis, new_size


def closed(mask: int, n: int) -> np.ndarray:
    """Which of n units the bits of a mask close."""
    return np.array([(mask >> k) & 1 for k in range(n)], bool)


def stepped(g: Graph, s: Step, v: Value) -> None:
    """Functions that jump, and truth values on the way."""
    kind = s.c % 6
    if kind == 0:
        name = g.emit(f"Greater({v.name}, {g.give(np.float32(0.1 * s.b))})", v)
        w = g.partner(v, s.b)
        name = g.emit(f"Where({name}, {v.name}, {w.name})", w)
    elif kind == 1:
        low, high = g.give(np.float32(0.5)), g.give(np.float32(-0.5 if s.b % 2 else 2.0))
        name = g.emit(f"Clip({v.name}, {low}, {high})", v)
    elif kind == 2:
        fixed = g.per_channel(closed(s.mask, v.width).astype(np.float32))
        name = g.emit(f"Cast<to=9>({fixed})")
        name = g.emit(f"Where({name}, {v.name}, {g.give(np.float32([0.0, 0.5, -1.0][s.b % 3]))})", v)
    elif kind == 3:
        name = g.emit(f"Less({v.name}, {g.give(np.float32(0.25))})", v)
        name = g.emit(f"Not({name})") if s.b % 2 else name
        name = g.emit(f"Cast<to=1>({name})")
        name = g.emit(f"Mul({name}, {v.name})")
    elif kind == 4:
        name = g.emit(f"ThresholdedRelu<alpha=0.25>({v.name})", v)
    else:
        name = g.emit(f"Shrink<lambd=0.3, bias=0.1>({v.name})", v)
    g.keep(name, v.width, v.size)


def extremum(g: Graph, s: Step, v: Value) -> None:
    """A reduction over the channels or over the other axes, broadcast back."""
    over = channel_axis(g) if s.b % 2 else (2 if g.rank == 4 else 1)
    kind = ["ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceSumSquare"][s.c % 7]
    axis = g.give([over if s.a % 2 else over - g.rank])
    name = g.emit(f"{kind}<keepdims=1>({v.name}, {axis})", v)
    name = g.emit(f"Tanh({name})")
    name = g.emit(f"{['Sub', 'Mul', 'Add'][s.mask % 3]}({v.name}, {name})")
    g.keep(name, v.width, v.size)


def backwards(g: Graph, s: Step, v: Value) -> None:
    """Slices with steps, reversed ones too, and Gathers that count from the end."""
    axis = channel_axis(g) - (g.rank if s.b % 2 else 0)
    kind = s.c % 4
    if kind == 0:
        name = g.emit(f"Slice({v.name}, {g.give([-1])}, {g.give([-(2**31)])}, {g.give([axis])}, {g.give([-1])})", v)
        g.keep(name, v.width, v.size)
    elif kind == 1:
        start, step = s.mask % v.width, 2 + s.b % 2
        ends = g.give([2**31])
        name = g.emit(f"Slice({v.name}, {g.give([start])}, {ends}, {g.give([axis])}, {g.give([step])})", v)
        g.keep(name, len(range(start, v.width, step)), v.size)
    elif kind == 2:
        indices = [-1 - (s.mask + 3 * k) % v.width for k in range(1 + s.b % 4)]
        name = g.emit(f"Gather<axis={axis}>({v.name}, {g.give(indices)})", v)
        g.keep(name, len(indices), v.size)
    elif v.width > 2:
        names = [g.name(stem) for stem in "pqr"]
        sizes = [v.width - 2, 1, 1]
        g.lines.append(f"{', '.join(names)} = Split<axis={axis}>({v.name}, {g.give(sizes)})")
        g.unread.pop(v.name, None)
        for name, size in list(zip(names, sizes, strict=True))[: 1 + s.b % 3]:  # the others stay unread
            g.keep(name, size, v.size)


def repeated(g: Graph, s: Step, v: Value) -> None:
    """Tile and Expand along the channels."""
    axis = channel_axis(g)
    if s.c % 2 and v.width <= 6:
        repeats = [2 if dim == axis else 1 for dim in range(g.rank)]
        g.keep(g.emit(f"Tile({v.name}, {g.give(repeats)})", v), 2 * v.width, v.size)
    else:
        last = g.give([axis])
        name = g.emit(f"ReduceMean<keepdims=1>({v.name}, {last})", v)
        shape = [3 if dim == axis else 1 for dim in range(g.rank)]
        g.keep(g.emit(f"Expand({name}, {g.give(shape)})"), 3, v.size)


def published(g: Graph, s: Step, v: Value) -> None:
    """The value becomes an output of the model as it is, perhaps twice, and its readers go on."""
    g.published.append((v, s.c % 4 == 0))


def sparse_conv(g: Graph, s: Step, v: Value) -> None:
    """Single weights are zero, padding differs on each side, taps lie apart, and weights are shared."""
    kernel, pads, dilation = [(3, [2, 0, 0, 2], 1), (3, [2, 2, 2, 2], 2), (1, [0, 0, 0, 0], 1)][s.c % 3]
    shape = (v.width, v.width, kernel, kernel)
    shared = [name for name in g.square if g.weights[name].shape == shape]
    if shared and s.b % 2:
        name = shared[s.b % len(shared)]
    else:
        w = weight(g.r, *shape)
        w[g.r.random(w.shape[:2]) < 0.7] = 0
        w[closed(s.mask, v.width)] = 0
        name = g.give(w)
        g.square.append(name)
    bias = g.give(g.vector(v.width))
    attributes = f"pads={pads}, dilations=[{dilation},{dilation}]"
    g.keep(g.emit(f"Conv<{attributes}>({v.name}, {name}, {bias})", v), v.width, v.size)


def rare_pool(g: Graph, s: Step, v: Value) -> None:
    kinds = [
        "MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>",
        "AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>",
        "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[0,1,1,1], ceil_mode=1, count_include_pad=1>",
        "MaxPool<kernel_shape=[2,2], dilations=[2,2], pads=[1,1,1,1]>",
        "AveragePool<kernel_shape=[2,2], pads=[1,0,0,1]>",
        'AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER", count_include_pad=1>',
    ]
    same = s.c % 6 >= 3
    if same or not v.size:
        g.keep(g.emit(f"{kinds[s.c % 6]}({v.name})", v), v.width, v.size if same else new_size(g))


def rearranged(g: Graph, s: Step, v: Value) -> None:
    """DepthToSpace and SpaceToDepth, one after the other or the first alone."""
    mode = "CRD" if s.c % 2 else "DCR"
    if v.width % 4 or v.size > 6:
        return
    name = g.emit(f'DepthToSpace<blocksize=2, mode="{mode}">({v.name})', v)
    if s.c % 3:
        g.keep(g.emit(f"SpaceToDepth<blocksize=2>({name})"), v.width, v.size)
    else:
        g.keep(name, v.width // 4, new_size(g))


def transposed_groups(g: Graph, s: Step, v: Value) -> None:
    groups = [n for n in (1, 2, v.width) if v.width % n == 0]
    group = groups[s.b % len(groups)]
    w = weight(g.r, v.width, 2, 3, 3)
    w[closed(s.mask, v.width)] = 0
    bias = f", {g.give(g.vector(2 * group))}" if s.c % 2 else ""
    if 2 * group <= 12:
        attributes = f"group={group}, pads=[1,1,1,1]"
        g.keep(g.emit(f"ConvTranspose<{attributes}>({v.name}, {g.give(w)}{bias})", v), 2 * group, v.size)


def sparse_linear(g: Graph, s: Step, v: Value) -> None:
    """Single weights are zero, and the weights may be shared with another layer, or turned."""
    shape = (v.width, v.width)
    shared = [name for name in g.square if g.weights[name].shape == shape]
    if shared and s.b % 2:
        name = shared[s.b % len(shared)]
    else:
        w = weight(g.r, *shape)
        w[g.r.random(shape) < 0.6] = 0
        w[:, closed(s.mask, v.width)] = 0
        name = g.give(w)
        g.square.append(name)
    if s.c % 3 == 0:
        name = g.emit(f"Transpose<perm=[1,0]>({name})")
    out = g.emit(f"MatMul({v.name}, {name})", v)
    g.keep(g.emit(f"Add({g.give(g.vector(v.width))}, {out})"), v.width, v.size)


def recurrent(g: Graph, s: Step, v: Value) -> None:
    """LSTM, GRU or RNN over the positions, both directions for some."""
    op, gates = [("LSTM", 4), ("GRU", 3), ("RNN", 1)][s.c % 3]
    hidden, directions = 1 + s.b % 4, 1 + s.a % 2
    w = weight(g.r, directions, gates * hidden, v.width)
    r = weight(g.r, directions, gates * hidden, hidden)
    b = g.vector(directions * 2 * gates * hidden).reshape(directions, -1)
    dead = closed(s.mask, hidden)
    for array in (w, r, b):
        array[:, np.tile(dead, array.shape[1] // hidden)] = 0
    name = g.emit(f"Transpose<perm=[1,0,2]>({v.name})", v)
    direction = "bidirectional" if directions == 2 else "forward"
    attributes = f'hidden_size={hidden}, direction="{direction}"'
    name = g.emit(f"{op}<{attributes}>({name}, {g.give(w)}, {g.give(r)}, {g.give(b)})")
    name = g.emit(f"Transpose<perm=[2,0,1,3]>({name})")  # [S, D, N, H] -> [N, S, D, H]
    name = g.emit(f"Reshape({name}, {g.give([0, 0, directions * hidden])})")
    g.keep(name, directions * hidden, v.size)


def embedded(g: Graph, s: Step, v: Value) -> None:
    """A table of rows, looked up by the feature that is largest."""
    name = g.emit(f"ArgMax<axis=2, keepdims=0>({v.name})", v)
    table = weight(g.r, v.width, 4)
    table[:, closed(s.mask, 4)] = [0.0, 0.5][s.c % 2]
    g.keep(g.emit(f"Gather<axis=0>({g.give(table)}, {name})"), 4, v.size)


def fused_attention(g: Graph, s: Step, v: Value) -> None:
    """The Attention operator: grouped queries, features and heads closed, with or without a projection."""
    kv, repeat, size = 1 + s.b % 2, 1 + s.c % 2, 1 + s.a % 3
    widths = (kv * repeat * size, kv * size, kv * size)
    parts = []
    for kind, n in enumerate(widths):
        name = g.emit(f"MatMul({v.name}, {g.give(weight(g.r, n, v.width).T.copy())})", v)
        name = g.emit(f"Add({name}, {g.give(g.vector(n))})")
        if (s.mask >> 9 + kind) & 1:
            mask = np.where(closed(s.mask >> kind, n), 0, 1).astype(np.float32)
            name = g.emit(f"Mul({name}, {g.give(mask)})")
        parts.append(name)
    causal = s.c // 2 % 2
    attributes = f"q_num_heads={kv * repeat}, kv_num_heads={kv}, is_causal={causal}"
    name = g.emit(f"Attention<{attributes}>({', '.join(parts)})")
    n = widths[0]
    mask = np.where(np.repeat(closed(s.mask, kv * repeat), size), 0, 1).astype(np.float32)
    name = g.emit(f"Mul({name}, {g.give(mask)})")
    g.keep(g.emit(f"MatMul({name}, {g.give(weight(g.r, v.width, n).T.copy())})"), v.width, v.size)


def contracted(g: Graph, s: Step, v: Value) -> None:
    """Einsum with a weight, or of two values over their features."""
    if s.c % 2:
        w = weight(g.r, 5, v.width)
        w[closed(s.mask, 5)] = 0
        g.keep(g.emit(f'Einsum<equation="nsk,ok->nso">({v.name}, {g.give(w)})', v), 5, v.size)
    else:
        w = g.partner(v, s.b)
        name = g.emit(f'Einsum<equation="nsk,ntk->nst">({v.name}, {w.name})', v, w)
        name = g.emit(f"Softmax<axis=-1>({name})")
        g.keep(g.emit(f'Einsum<equation="nst,ntk->nsk">({name}, {w.name})'), v.width, v.size)


def masked_softmax(g: Graph, s: Step, v: Value) -> None:
    """Some entries of the softmax axis are minus infinity, or so far down that they come out as zero."""
    axis = channel_axis(g)
    shut = closed(s.mask, v.width)
    shut[s.b % v.width] = False
    depth = [-np.inf, -1e9][s.c % 2]
    if s.c % 4 < 2:
        name = g.emit(f"Add({v.name}, {g.per_channel(np.where(shut, depth, 0.0))})", v)
    else:
        name = g.emit(f"Cast<to=9>({g.per_channel(shut.astype(np.float32))})")
        name = g.emit(f"Where({name}, {g.give(np.float32(depth))}, {v.name})", v)
    g.keep(g.emit(f"Softmax<axis={axis}>({name})"), v.width, v.size)


def spread(g: Graph, s: Step, v: Value) -> None:
    """A variance over the channels that is spelled out, or a norm over space against its mean over the channels."""
    axis = g.give([channel_axis(g)])
    if s.c % 3 == 2:
        other = [2, 3] if g.rank == 4 else [1]
        norm = g.emit(f"{['ReduceL2', 'ReduceMean', 'ReduceMax'][s.b % 3]}<keepdims=1>({v.name}, {g.give(other)})", v)
        name = g.emit(f"ReduceMean<keepdims=1>({norm}, {axis})")
        name = g.emit(f"Mul({name}, {name})")
        name = g.emit(f"Add({name}, {g.give(np.float32(1.0))})")
        name = g.emit(f"{['Div', 'Mul', 'Sub', 'Add'][s.mask % 4]}({norm}, {name})")
        name = g.emit(f"Mul({v.name}, {name})")
    else:
        mean = g.emit(f"{['ReduceMean', 'ReduceMax'][s.b // 2 % 2]}<keepdims=1>({v.name}, {axis})", v)
        difference = g.emit(f"Sub({v.name}, {mean})" if s.b % 2 else f"Sub({mean}, {v.name})")
        name = g.emit(f"Mul({difference}, {difference})")
        name = g.emit(f"{['ReduceMean', 'ReduceSum'][s.mask % 2]}<keepdims=1>({name}, {axis})")
        name = g.emit(f"Add({name}, {g.give(np.float32(0.5))})")
        name = g.emit(f"Sqrt({name})")
        name = g.emit(f"Div({v.name if s.c % 3 else difference}, {name})")
    name = g.emit(f"Mul({name}, {g.per_channel(g.vector(v.width))})")
    name = g.emit(f"Add({name}, {v.name})") if s.mask % 3 else name
    g.keep(name, v.width, v.size)


RARE: dict[str, Operation] = {
    "stepped": stepped, "extremum": extremum, "backwards": backwards, "repeated": repeated, "published": published,
    "masked_softmax": masked_softmax, "spread": spread,
}  # fmt: skip
RARE_IMAGE: dict[str, Operation] = {
    **RARE, "sparse_conv": sparse_conv, "rare_pool": rare_pool, "rearranged": rearranged,
    "transposed_groups": transposed_groups,
}  # fmt: skip
RARE_SEQUENCE: dict[str, Operation] = {
    **RARE, "sparse_linear": sparse_linear, "recurrent": recurrent, "embedded": embedded,
    "fused_attention": fused_attention, "contracted": contracted,
}  # fmt: skip
