"""Which random gated graph does a short program of small integers stand for?

A program is a list of `Step(op, a, b, c, mask)`. Every list of every such tuples is a valid graph: numbers are taken
modulo what is possible where they are used, and `a` counts back from the newest value. So a failing program stays valid
while hypothesis drops steps and shrinks numbers, and what is left is nearly the smallest graph that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx
from cases.table import model, weight


class Step(NamedTuple):
    """One operation: `a`, `b` choose values, `c` a variant, the bits of `mask` which units are closed."""

    op: str
    a: int
    b: int
    c: int
    mask: int


class Value(NamedTuple):
    """A value of the graph: its name, its number of channels, and the size class of its other axes."""

    name: str
    width: int
    size: int


@dataclass
class Graph:
    """A graph in the making; `rank` 4 has channels on axis 1, rank 3 on the last axis."""

    r: np.random.Generator
    rank: int
    static: bool
    pool: list[Value] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    weights: dict[str, object] = field(default_factory=dict)
    unread: dict[str, Value] = field(default_factory=dict)
    square: list[str] = field(default_factory=list)  # weights that another layer may share
    published: list[tuple[Value, bool]] = field(default_factory=list)  # outputs as they are; True: twice
    sizes: int = 1

    def name(self, stem: str = "v") -> str:
        return f"{stem}{len(self.lines)}_{len(self.weights)}"

    def give(self, value: object, stem: str = "w") -> str:
        name = self.name(stem)
        self.weights[name] = value
        return name

    def emit(self, text: str, *sources: Value) -> str:
        """Add the node `text`, the right side of an assignment; returns the new name."""
        name = self.name()
        self.lines.append(f"{name} = {text}")
        for source in sources:
            self.unread.pop(source.name, None)
        return name

    def keep(self, name: str, width: int, size: int) -> None:
        value = Value(name, width, size)
        self.pool.append(value)
        self.unread[name] = value

    def pick(self, back: int) -> Value:
        return self.pool[-1 - back % len(self.pool)]

    def partner(self, value: Value, back: int, same_width: bool = True) -> Value:
        """A value that fits beside `value`; itself if there is no other."""
        fits = [v for v in self.pool if v.size == value.size and (v.width == value.width or not same_width)]
        return fits[-1 - back % len(fits)]

    def per_channel(self, array: np.ndarray, stem: str = "w") -> str:
        """A vector as an initializer that broadcasts along the channels."""
        return self.give(np.asarray(array, np.float32).reshape(-1, *[1] * (2 if self.rank == 4 else 0)), stem)

    def vector(self, n: int) -> np.ndarray:
        return self.r.normal(size=n).astype(np.float32)


def gated(g: Graph, s: Step, v: Value) -> None:
    open_values = np.ones(v.width) if s.c % 2 else g.r.uniform(0.3, 1.0, v.width)
    closed = [(s.mask >> k) & 1 for k in range(v.width)]
    z = g.per_channel(np.where(closed, 0.0, open_values), "gate")
    g.keep(g.emit(f"Mul({v.name}, {z})", v), v.width, v.size)


ACTIVATIONS = (
    *("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Softplus", "HardSwish"),
    *("Neg", "Abs", "Exp_", "Clip_", "Silu_", "PRelu_"),
)


def activation(g: Graph, s: Step, v: Value) -> None:
    kind = ACTIVATIONS[s.c % len(ACTIVATIONS)]
    if kind == "Clip_":
        low, high = g.give(np.float32([0.0, -1.0, 0.25][s.b % 3])), g.give(np.float32(1.5))
        name = g.emit(f"Clip({v.name}, {low}, {high})", v)
    elif kind == "Silu_":
        name = g.emit(f"Sigmoid({v.name})", v)
        name = g.emit(f"Mul({v.name}, {name})")
    elif kind == "Exp_":
        name = g.emit(f"Tanh({v.name})", v)
        name = g.emit(f"Exp({name})")
    elif kind == "PRelu_":
        name = g.emit(f"PRelu({v.name}, {g.per_channel(g.vector(v.width))})", v)
    else:
        name = g.emit(f"{kind}({v.name})", v)
    g.keep(name, v.width, v.size)


def offset(g: Graph, s: Step, v: Value) -> None:
    closed = np.array([(s.mask >> k) & 1 for k in range(v.width)])
    name = g.emit(f"Add({v.name}, {g.per_channel(np.where(closed, 0.0, g.vector(v.width)))})", v)
    g.keep(name, v.width, v.size)


def pair(g: Graph, s: Step, v: Value) -> None:
    w = g.partner(v, s.b)
    name = g.emit(f"{['Add', 'Mul', 'Sub', 'Max', 'Sum', 'Mean'][s.c % 6]}({v.name}, {w.name})", v, w)
    g.keep(name, v.width, v.size)


def channel_axis(g: Graph) -> int:
    return 1 if g.rank == 4 else 2


def concat(g: Graph, s: Step, v: Value) -> None:
    w = g.partner(v, s.b, same_width=False)
    if v.width + w.width <= 12:
        g.keep(g.emit(f"Concat<axis={channel_axis(g)}>({v.name}, {w.name})", v, w), v.width + w.width, v.size)


def part(g: Graph, s: Step, v: Value) -> None:
    axis = channel_axis(g)
    if s.c % 3 == 0:
        start = s.b % v.width
        end = start + 1 + s.mask % (v.width - start)
        name = g.emit(f"Slice({v.name}, {g.give([start])}, {g.give([end])}, {g.give([axis])})", v)
        g.keep(name, end - start, v.size)
    elif s.c % 3 == 1:
        indices = [(s.b + k * (1 + s.mask % 3)) % v.width for k in range(1 + s.mask % (v.width + 2))]
        name = g.emit(f"Gather<axis={axis}>({v.name}, {g.give(indices)})", v)
        g.keep(name, len(indices), v.size)
    elif v.width > 1:
        first = 1 + s.b % (v.width - 1)
        left, right = g.name("p"), g.name("q")
        g.lines.append(f"{left}, {right} = Split<axis={axis}>({v.name}, {g.give([first, v.width - first])})")
        g.unread.pop(v.name, None)
        g.keep(left, first, v.size)
        g.keep(right, v.width - first, v.size)


def shuffle(g: Graph, s: Step, v: Value) -> None:
    """Split the channels in two factors, swap them, merge: only where the other axes need no size."""
    if v.width % 2 or (g.rank == 4 and not (g.static and v.size == 0)):
        return
    k = v.width // 2
    if g.rank == 4:
        name = g.emit(f"Reshape({v.name}, {g.give([0, 2, k, 5, 6])})", v)
        name = g.emit(f"Transpose<perm=[0,2,1,3,4]>({name})")
        name = g.emit(f"Reshape({name}, {g.give([0, v.width, 5, 6])})")
    else:
        name = g.emit(f"Reshape({v.name}, {g.give([0, 0, 2, k])})", v)
        name = g.emit(f"Transpose<perm=[0,1,3,2]>({name})")
        name = g.emit(f"Reshape({name}, {g.give([0, 0, v.width])})")
    g.keep(name, v.width, v.size)


def with_zeros(g: Graph, w: np.ndarray, mask: int, axis: int) -> np.ndarray:
    """Zero slices of a weight: position A (filters) or C (columns)."""
    for k in range(w.shape[axis]):
        if (mask >> k) & 1:
            w[(slice(None),) * axis + (k,)] = 0
    return w


def conv(g: Graph, s: Step, v: Value) -> None:
    kernel, pad, stride = [(3, 1, 1), (1, 0, 1), (3, 0, 1), (3, 1, 2)][s.c % 4]
    if v.size and (kernel, pad, stride) not in ((3, 1, 1), (1, 0, 1)):
        kernel, pad, stride = 3, 1, 1
    groups = [n for n in (1, 2, 3, v.width) if v.width % n == 0]
    group = groups[s.b % len(groups)] if s.c >= 4 else 1
    out = group * (1 + s.a % 3) if group > 1 else 1 + s.b % 6
    w = weight(g.r, out, v.width // group, kernel, kernel)
    w = with_zeros(g, w, s.mask, s.c // 4 % 2)
    bias = f", {g.give(g.vector(out))}" if s.mask % 2 else ""
    attributes = f"pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}], group={group}"
    name = g.emit(f"Conv<{attributes}>({v.name}, {g.give(w)}{bias})", v)
    g.keep(name, out, v.size if (pad, stride) == ((kernel - 1) // 2, 1) else new_size(g))


def new_size(g: Graph) -> int:
    g.sizes += 1
    return g.sizes - 1


def batch_norm(g: Graph, s: Step, v: Value) -> None:
    n = v.width
    statistics = (g.r.uniform(0.5, 1.5, n), g.vector(n), g.vector(n), g.r.uniform(0.5, 2, n))
    names = [g.give(a.astype(np.float32)) for a in statistics]
    g.keep(g.emit(f"BatchNormalization({v.name}, {', '.join(names)})", v), n, v.size)


def pool(g: Graph, s: Step, v: Value) -> None:
    kinds = [
        "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>", "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>",
        "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>",
        "MaxPool<kernel_shape=[2,2]>", "AveragePool<kernel_shape=[2,2]>",
    ]  # fmt: skip
    kind = s.c % (3 if v.size else 5)
    g.keep(g.emit(f"{kinds[kind]}({v.name})", v), v.width, v.size if kind < 3 else new_size(g))


def squeeze_excite(g: Graph, s: Step, v: Value) -> None:
    name = g.emit(f"GlobalAveragePool({v.name})", v)
    hidden = 1 + s.b % 3
    name = g.emit(f"Conv({name}, {g.give(weight(g.r, hidden, v.width, 1, 1))}, {g.give(g.vector(hidden))})")
    name = g.emit(f"Relu({name})")
    name = g.emit(f"Conv({name}, {g.give(weight(g.r, v.width, hidden, 1, 1))}, {g.give(g.vector(v.width))})")
    name = g.emit(f"Sigmoid({name})")
    g.keep(g.emit(f"Mul({v.name}, {name})"), v.width, v.size)


def image_norm(g: Graph, s: Step, v: Value) -> None:
    scale, bias = (g.give(g.vector(v.width)) for _ in range(2))
    if s.c % 3 == 0:
        name = g.emit(f"InstanceNormalization<epsilon=0.1>({v.name}, {scale}, {bias})", v)
    elif s.c % 3 == 1:
        groups = [n for n in range(1, v.width + 1) if v.width % n == 0]
        chosen = groups[s.b % len(groups)]
        name = g.emit(f"GroupNormalization<num_groups={chosen}, epsilon=0.1>({v.name}, {scale}, {bias})", v)
    else:
        name = g.emit(f"Transpose<perm=[0,2,3,1]>({v.name})", v)
        name = g.emit(f"LayerNormalization<epsilon=0.1>({name}, {scale}, {bias})")
        name = g.emit(f"Transpose<perm=[0,3,1,2]>({name})")
    g.keep(name, v.width, v.size)


def pad(g: Graph, s: Step, v: Value) -> None:
    mode = ["constant", "edge", "constant"][s.c % 3]
    value = f", {g.give(np.float32(0.5))}" if s.c % 3 == 2 else ""
    where = [0, 1, 0, 0, 0, 1, 0, 0] if s.b % 3 == 2 else [0, 0, 1, 0, 0, 0, 0, 1]
    width = v.width + (2 if s.b % 3 == 2 else 0)
    if width <= 12:
        size = v.size if s.b % 3 == 2 else new_size(g)
        g.keep(g.emit(f'Pad<mode="{mode}">({v.name}, {g.give(where)}{value})', v), width, size)


def upsample(g: Graph, s: Step, v: Value) -> None:
    if v.size:
        return
    if s.c % 2:
        w = with_zeros(g, weight(g.r, v.width, 3, 2, 2), s.mask, s.b % 2)
        name = g.emit(f"ConvTranspose<strides=[2,2]>({v.name}, {g.give(w)}, {g.give(g.vector(3))})", v)
        g.keep(name, 3, new_size(g))
    else:
        mode = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
        name = g.emit(f'Resize<{mode}>({v.name}, "", {g.give([1.0, 1.0, 2.0, 2.0])})', v)
        g.keep(name, v.width, new_size(g))


def linear(g: Graph, s: Step, v: Value) -> None:
    out = 1 + s.b % 6
    w = with_zeros(g, weight(g.r, out, v.width).T.copy(), s.mask, s.c // 2 % 2)
    name = g.emit(f"MatMul({v.name}, {g.give(w)})", v)
    if s.c % 2:
        name = g.emit(f"Add({name}, {g.give(g.vector(out))})")
    g.keep(name, out, v.size)


def sequence_norm(g: Graph, s: Step, v: Value) -> None:
    scale, bias = (g.give(g.vector(v.width)) for _ in range(2))
    if s.c % 3 == 0:
        name = g.emit(f"LayerNormalization<epsilon=0.1>({v.name}, {scale}, {bias})", v)
    elif s.c % 3 == 1:
        name = g.emit(f"RMSNormalization<epsilon=0.1>({v.name}, {scale})", v)
    else:
        last, eps = g.give([-1]), g.give(np.float32(0.1))
        name = g.emit(f"Mul({v.name}, {v.name})", v)
        name = g.emit(f"ReduceMean({name}, {last})")
        name = g.emit(f"Add({name}, {eps})")
        name = g.emit(f"Sqrt({name})")
        name = g.emit(f"Div({v.name}, {name})")
        name = g.emit(f"Mul({scale}, {name})")
    g.keep(name, v.width, v.size)


def mix(g: Graph, s: Step, v: Value) -> None:
    """Operators that mix positions or features."""
    kind = s.c % 4
    if kind == 0:
        name = g.emit(f"Softmax<axis={1 + s.b % 2}>({v.name})", v)
    elif kind == 1:
        w = g.partner(v, s.b)
        turned = g.emit(f"Transpose<perm=[0,2,1]>({w.name})", w)
        scores = g.emit(f"MatMul({v.name}, {turned})", v)
        probabilities = g.emit(f"Softmax<axis=-1>({scores})")
        name = g.emit(f"MatMul({probabilities}, {w.name})")
    elif kind == 2:
        name = g.emit(f"ReduceMean<keepdims=1>({v.name}, {g.give([1])})", v)
        name = g.emit(f"Mul({v.name}, {name})")
    else:
        name = g.emit(f"ReduceSum<keepdims=1>({v.name}, {g.give([2])})", v)
        name = g.emit(f"Tanh({name})")
        name = g.emit(f"Mul({v.name}, {name})")
    g.keep(name, v.width, v.size)


def attention(g: Graph, s: Step, v: Value) -> None:
    """Heads split by Reshape and Transpose, a gate per merged feature, and a projection back."""
    heads, size = 1 + s.b % 3, 1 + s.c % 3
    n = heads * size
    parts = []
    for kind in range(3):
        name = g.emit(f"MatMul({v.name}, {g.give(weight(g.r, n, v.width).T.copy())})", v)
        name = g.emit(f"Add({name}, {g.give(g.vector(n))})")
        if kind == s.a % 3:
            closed = np.array([(s.mask >> k) & 1 for k in range(n)])
            name = g.emit(f"Mul({name}, {g.give(np.where(closed, 0, 1).astype(np.float32))})")
        name = g.emit(f"Reshape({name}, {g.give([0, 0, heads, size])})")
        parts.append(g.emit(f"Transpose<perm=[0,2,{'3,1' if kind == 1 else '1,3'}]>({name})"))
    name = g.emit(f"MatMul({parts[0]}, {parts[1]})")
    name = g.emit(f"Softmax<axis=-1>({name})")
    name = g.emit(f"MatMul({name}, {parts[2]})")
    name = g.emit(f"Transpose<perm=[0,2,1,3]>({name})")
    name = g.emit(f"Reshape({name}, {g.give([0, 0, n])})")
    closed = np.array([(s.mask >> (k // size)) & 1 for k in range(n)])
    name = g.emit(f"Mul({name}, {g.give(np.where(closed, 0, 1).astype(np.float32))})")
    name = g.emit(f"MatMul({name}, {g.give(weight(g.r, v.width, n).T.copy())})")
    g.keep(name, v.width, v.size)


Operation = Callable[[Graph, Step, Value], None]
SHARED: dict[str, Operation] = {
    "gate": gated, "activation": activation, "pair": pair, "offset": offset, "concat": concat, "part": part,
    "shuffle": shuffle
}  # fmt: skip
IMAGE: dict[str, Operation] = {
    "conv": conv, **SHARED, "batch_norm": batch_norm, "pool": pool, "squeeze_excite": squeeze_excite,
    "image_norm": image_norm,
    "pad": pad, "upsample": upsample,
}  # fmt: skip
SEQUENCE: dict[str, Operation] = {
    "linear": linear, **SHARED, "sequence_norm": sequence_norm, "mix": mix, "attention": attention
}  # fmt: skip


def build(rank: int, program: Sequence[Step], seed: int, static: bool = False) -> onnx.ModelProto:
    """The graph of a program; every value that nothing reads gets a reader of its own and becomes an output.

    Args:
        rank: 4 for images [N, 3, H, W], 3 for sequences [N, S, 4].
        seed: of the weights, biases and statistics.
        static: images are 5 x 6.
    """
    from random_rare import RARE_IMAGE, RARE_SEQUENCE  # its operations need the types of this file

    g = Graph(np.random.default_rng(seed), rank, static)
    operations = {**IMAGE, **RARE_IMAGE} if rank == 4 else {**SEQUENCE, **RARE_SEQUENCE}
    g.pool.append(Value("x", 3 if rank == 4 else 4, 0))
    (conv if rank == 4 else linear)(g, Step("", 0, 5, 0, 0), g.pool[0])
    for step in program:
        operations[step.op](g, step, g.pick(step.a))
    outputs = []
    for position, (value, twice) in enumerate(g.published):
        # an input or a value that is an output already gets a name of its own
        name = g.emit(f"Identity({value.name})", value) if value.name in ("x", *_names(outputs)) else value.name
        g.unread.pop(name, None)
        space = f"{value.width},U{position},V{position}" if rank == 4 else f"S,{value.width}"
        outputs += [f"float[N,{space}] {name}"] * (1 + twice)
    for position, value in enumerate(list(g.unread.values())):
        if rank == 4:
            w = g.give(weight(g.r, 2, value.width, *(3, 3)))
            name = g.emit(f"Conv<pads=[1,1,1,1]>({value.name}, {w})", value)
            outputs.append(f"float[N,2,H{position}_,W{position}_] {name}")
        else:
            name = g.emit(f"MatMul({value.name}, {g.give(weight(g.r, value.width, 2))})", value)
            outputs.append(f"float[N,S,2] {name}")
    inputs = ("float[N,3,5,6] x" if static else "float[N,3,H,W] x") if rank == 4 else "float[N,S,4] x"
    return model(f"({inputs}) => ({', '.join(outputs)}) {{\n" + "\n".join(g.lines) + "\n}", opset=23, **g.weights)


def _names(outputs: Sequence[str]) -> list[str]:
    return [text.split()[-1] for text in outputs]
