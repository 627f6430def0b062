"""Whole blocks: residual, dense, squeeze-excite, inverted bottleneck, U-Net; dead branches and closed stages."""

from __future__ import annotations

import numpy as np

from cases.table import batch_norm, case, channels, gate, model, vector, weight


def conv(out: str, source: str, w: str, attributes: str = "pads=[1,1,1,1]") -> str:
    """One line of ONNX text."""
    return f"{out} = Conv<{attributes}>({source}, {w})\n"


def bn(out: str, source: str, p: str) -> str:
    """One line of ONNX text."""
    return f"{out} = BatchNormalization({source}, {p}_s, {p}_b, {p}_m, {p}_v)\n"


def residual(r, stream=(), branch=(), middle=(1, 4, 6)):
    """stem 8 channels -> relu(x + bn(conv(gate * relu(bn(conv x))))) -> conv; gates on stem, middle and branch."""
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {{
            {conv('c1', 'x', 'w1')} {bn('n1', 'c1', 'p1')}
            s0 = Relu(n1)
            s = Mul(s0, zs)
            {conv('c2', 's', 'w2')} {bn('n2', 'c2', 'p2')}
            r2 = Relu(n2)
            g2 = Mul(r2, zm)
            {conv('c3', 'g2', 'w3')} {bn('n3', 'c3', 'p3')}
            b3 = Mul(n3, zb)
            t = Add(s, b3)
            t2 = Relu(t)
            y = Conv(t2, w4)
        }}""",
        w1=weight(r, 8, 3, 3, 3), w2=weight(r, 8, 8, 3, 3), w3=weight(r, 8, 8, 3, 3), w4=weight(r, 4, 8, 3, 3),
        zs=channels(gate(r, 8, stream)), zm=channels(gate(r, 8, middle)), zb=channels(gate(r, 8, branch)),
        **batch_norm(r, 8, "p1"), **batch_norm(r, 8, "p2"), **batch_norm(r, 8, "p3"),
    )  # fmt: skip


def residual_params(stream: int, middle: int) -> int:
    """Weights of `residual` when the stream and the middle have these widths."""
    convs = 9 * (3 * stream + 2 * stream * middle + 4 * stream)
    return convs + 4 * (2 * stream + middle)


@case(params=residual_params(8, 5))
def residual_block_with_a_gated_middle(r):
    return residual(r)


@case(params=residual_params(5, 5))  # position D
def residual_group_closed_at_every_write(r):
    return residual(r, stream=(0, 3, 5), branch=(0, 3, 5))


@case(params=residual_params(7, 5))  # only channel 3 is closed in both writes
def residual_group_closed_differently_at_its_writes(r):
    return residual(r, stream=(0, 3), branch=(3, 5))


@case(params=residual_params(8, 5))
def residual_block_whose_stem_alone_is_gated(r):
    return residual(r, stream=(0, 3, 5))


@case(params=9 * (24 + 32) + 4 * 8)  # the Add disappears
def residual_block_whose_branch_is_closed(r):
    return residual(r, branch=range(8))


@case(params=9 * (24 + 32) + 4 * 8 + 8)  # what stays of the branch is one constant per channel
def residual_block_whose_middle_is_closed(r):
    return residual(r, middle=range(8))


@case(equality="the stem is closed, the branch reads constants", constant_output=True)
def residual_block_whose_stem_is_closed(r):
    return residual(r, stream=range(8))


def preactivation(r, gates, size="H,W"):
    """Two pre-activation blocks as the paper's WideResNet has them: gate -> BatchNorm -> ReLU -> padded conv."""
    z1, z2 = gates
    return model(
        f"""(float[N,3,{size}] x) => (float[N,5] y) {{
            {conv('s', 'x', 'w0')}
            {bn('n1', 's', 'p1')}
            a1 = Relu(n1)
            {conv('c1', 'a1', 'w1')}
            g1 = Mul(c1, z1)
            {bn('n2', 'g1', 'p2')}
            a2 = Relu(n2)
            {conv('c2', 'a2', 'w2')}
            t1 = Add(s, c2)
            {bn('n3', 't1', 'p3')}
            a3 = Relu(n3)
            {conv('c3', 'a3', 'w3', 'pads=[1,1,1,1], strides=[2,2]')}
            g3 = Mul(c3, z2)
            {bn('n4', 'g3', 'p4')}
            a4 = Relu(n4)
            {conv('c4', 'a4', 'w4')}
            {conv('k', 'a3', 'w5', 'strides=[2,2]')}
            t2 = Add(c4, k)
            {bn('n5', 't2', 'p5')}
            a5 = Relu(n5)
            q = GlobalAveragePool(a5)
            f = Flatten(q)
            y = Gemm<transB=1>(f, wy, by)
        }}""",
        w0=weight(r, 6, 3, 3, 3), w1=weight(r, 8, 6, 3, 3), w2=weight(r, 6, 8, 3, 3), w3=weight(r, 10, 6, 3, 3),
        w4=weight(r, 9, 10, 3, 3), w5=weight(r, 9, 6, 1, 1), wy=weight(r, 5, 9), by=vector(r, 5),
        z1=channels(gate(r, 8, z1)), z2=channels(gate(r, 10, z2)), **batch_norm(r, 6, "p1"),
        **batch_norm(r, 8, "p2", {1: 0.4, 4: 0.9, 6: -0.5}), **batch_norm(r, 6, "p3"),
        **batch_norm(r, 10, "p4", {0: 0.4, 5: -0.9, 7: 0.5, 9: 1.5}), **batch_norm(r, 9, "p5"),
    )  # fmt: skip


def preactivation_params(a: int, b: int) -> int:
    convs = 9 * (18 + 6 * a + 6 * a + 6 * b + 9 * b) + 54
    return convs + 4 * (6 + a + 6 + b + 9) + 45 + 5


@case(params=preactivation_params(5 + 1, 6 + 1))  # each keeps one channel that is constant
def wide_resnet_blocks_with_gates_before_norm(r):
    return preactivation(r, ((1, 4, 6), (0, 5, 7, 9)))


@case(params=preactivation_params(5 + 1, 6 + 1))
def wide_resnet_blocks_of_static_size(r):
    return preactivation(r, ((1, 4, 6), (0, 5, 7, 9)), size="8,8")


@case(equality="a closed layer before the norm: the branch is a constant image with a border")
def wide_resnet_blocks_with_a_closed_layer(r):
    return preactivation(r, (tuple(range(8)), (0, 5, 7, 9)))


@case(equality="three layers, each reads all before it; closed channels of each layer go from all its readers")
def dense_blocks_with_concat(r):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,H,W] y) {{
            {conv('s', 'x', 'w0')}
            {bn('n1', 's', 'p1')}
            a1 = Relu(n1)
            {conv('c1', 'a1', 'w1')}
            g1 = Mul(c1, z1)
            j1 = Concat<axis=1>(s, g1)
            {bn('n2', 'j1', 'p2')}
            a2 = Relu(n2)
            {conv('c2', 'a2', 'w2')}
            g2 = Mul(c2, z2)
            j2 = Concat<axis=1>(s, g1, g2)
            {bn('n3', 'j2', 'p3')}
            a3 = Relu(n3)
            y = Conv(a3, w3, b3)
        }}""",
        w0=weight(r, 5, 3, 3, 3), w1=weight(r, 4, 5, 3, 3), w2=weight(r, 4, 9, 3, 3), w3=weight(r, 4, 13, 1, 1),
        b3=vector(r, 4), z1=channels(gate(r, 4, (1, 3))), z2=channels(gate(r, 4, (0,))), **batch_norm(r, 5, "p1"),
        **batch_norm(r, 9, "p2", {6: 0.5, 8: 0.8}), **batch_norm(r, 13, "p3", {6: -0.5, 8: 0.8, 9: 1.2}),
    )  # fmt: skip


def squeeze_excite(r, place):
    gates = {p: np.ones(8, np.float32) for p in ("before", "hidden", "excite", "after")}
    gates["hidden"] = np.ones(4, np.float32)
    gates[place] = gate(r, *((4, (0, 2)) if place == "hidden" else (8, (1, 4, 6))))
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,H,W] y) {{
            {conv('c', 'x', 'w1')}
            {bn('n', 'c', 'p1')}
            a = Relu(n)
            g = Mul(a, z_before)
            q = GlobalAveragePool(g)
            h = Conv(q, w2, b2)
            hr = Relu(h)
            hz = Mul(hr, z_hidden)
            e = Conv(hz, w3, b3)
            s = Sigmoid(e)
            sz = Mul(s, z_excite)
            m = Mul(g, sz)
            o = Mul(m, z_after)
            {conv('y', 'o', 'w4')}
        }}""",
        w1=weight(r, 8, 3, 3, 3), w2=weight(r, 4, 8, 1, 1), b2=vector(r, 4), w3=weight(r, 8, 4, 1, 1), b3=vector(r, 8),
        w4=weight(r, 4, 8, 3, 3), **batch_norm(r, 8, "p1"), **{f"z_{k}": channels(v) for k, v in gates.items()},
    )  # fmt: skip


def squeeze_excite_params(c: int, hidden: int, out: int | None = None) -> int:
    out = c if out is None else out
    return 27 * c + 4 * c + hidden * c + hidden + out * hidden + out + 36 * out


@case(params=squeeze_excite_params(5, 4))
def squeeze_excite_with_a_gate_before_the_squeeze(r):
    return squeeze_excite(r, "before")


@case(params=squeeze_excite_params(8, 2))
def squeeze_excite_with_a_gated_bottleneck(r):
    return squeeze_excite(r, "hidden")


@case(equality="a gate on the excite output frees the last reader at most: the squeeze reads every channel")
def squeeze_excite_with_a_gate_on_the_excite(r):
    return squeeze_excite(r, "excite")


@case(equality="a gate behind the product frees the last reader at most: the squeeze reads every channel")
def squeeze_excite_with_a_gate_behind_the_product(r):
    return squeeze_excite(r, "after")


@case(params=8 * 6 + 8 + 8 * 9 + (4 * 8 + 4) + (8 * 4 + 8) + (4 * 8 + 4) + 4 * 3 * 3)
def squeeze_excite_of_maps_that_do_not_depend_on_the_input(r):
    """Zero filters with live biases, a padded depthwise convolution, and zero rows in the excitation.

    The squeeze reads the mean of each map, a constant; behind the product there are maps again, 3 x 3 places each.
    """
    closed = [1, 2, 5, 6, 9, 11, 12, 15]
    w1, w4 = weight(r, 16, 6, 1, 1), weight(r, 16, 4, 1, 1)
    w1[closed] = 0
    w4[closed] = 0
    return model(
        f"""(float[N,6,8,8] x) => (float[N,4,8,8] y) {{
            {conv('e', 'x', 'w1, b1', 'pads=[0,0,0,0]')}
            a1 = HardSwish(e)
            {conv('d', 'a1', 'w2', 'pads=[1,1,1,1], group=16')}
            a2 = HardSwish(d)
            q = ReduceMean(a2, space)
            {conv('h', 'q', 'w3, b3', 'pads=[0,0,0,0]')}
            hr = Relu(h)
            {conv('k', 'hr', 'w4, b4', 'pads=[0,0,0,0]')}
            s = Sigmoid(k)
            m = Mul(s, a2)
            {conv('y', 'm', 'w5, b5', 'pads=[0,0,0,0]')}
        }}""",
        w1=w1, b1=1 + np.abs(vector(r, 16)), w2=weight(r, 16, 1, 3, 3), space=[2, 3], w3=weight(r, 4, 16, 1, 1),
        b3=vector(r, 4), w4=w4, b4=vector(r, 16), w5=weight(r, 4, 16, 1, 1), b5=vector(r, 4),
    )  # fmt: skip


@case(params=6 * 5 + 4 * 5 + 9 * 5 + 4 * 5 + 6 * 5 + 4 * 6 + 4 * 6 * 9)
def inverted_bottleneck_with_a_gated_expansion(r):
    """MobileNetV2: expand, depthwise, project, add; gates behind the depthwise activation."""
    return model(
        f"""(float[N,6,H,W] x) => (float[N,4,H,W] y) {{
            {conv('e', 'x', 'w1', 'pads=[0,0,0,0]')}
            {bn('n1', 'e', 'p1')}
            a1 = Clip(n1, zero, six)
            {conv('d', 'a1', 'w2', 'pads=[1,1,1,1], group=8')}
            {bn('n2', 'd', 'p2')}
            a2 = Clip(n2, zero, six)
            g = Mul(a2, z)
            {conv('j', 'g', 'w3', 'pads=[0,0,0,0]')}
            {bn('n3', 'j', 'p3')}
            t = Add(x, n3)
            {conv('y', 't', 'w4')}
        }}""",
        w1=weight(r, 8, 6, 1, 1), w2=weight(r, 8, 1, 3, 3), w3=weight(r, 6, 8, 1, 1), w4=weight(r, 4, 6, 3, 3),
        z=channels(gate(r, 8)), zero=0.0, six=6.0, **batch_norm(r, 8, "p1"), **batch_norm(r, 8, "p2"),
        **batch_norm(r, 6, "p3"),
    )  # fmt: skip


@case(equality="two depths of a U-Net joined by a resize and a concatenation")
def u_net_with_a_gated_skip_and_a_gated_bottom(r):
    return model(
        f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) {{
            {conv('c1', 'x', 'w1')}
            {bn('n1', 'c1', 'p1')}
            a1 = Relu(n1)
            g1 = Mul(a1, z1)
            d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(g1)
            {conv('c2', 'd', 'w2')}
            g2 = Mul(c2, z2)
            {bn('n2', 'g2', 'p2')}
            a2 = Relu(n2)
            u = ConvTranspose<strides=[2,2]>(a2, wt, bt)
            g3 = Mul(u, z3)
            j = Concat<axis=1>(g1, g3)
            y = Conv<pads=[1,1,1,1]>(j, w4, b4)
        }}""",
        w1=weight(r, 8, 3, 3, 3), w2=weight(r, 10, 8, 3, 3), wt=weight(r, 10, 6, 2, 2), bt=vector(r, 6),
        w4=weight(r, 4, 14, 3, 3), b4=vector(r, 4), z1=channels(gate(r, 8)), z2=channels(gate(r, 10, (0, 3, 9))),
        z3=channels(gate(r, 6, (2, 5))), **batch_norm(r, 8, "p1"), **batch_norm(r, 10, "p2", {0: 0.5, 3: 1.1, 9: -0.3}),
    )  # fmt: skip


def convnext(r, layer_scale, hidden, stream=()):
    """Depthwise 7x7, LayerNorm with channels last, two linear layers, layer scale, residual."""
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,H,W] y) {{
            {conv('s0', 'x', 'w0')}
            s = Mul(s0, zs)
            d = Conv<pads=[3,3,3,3], group=6>(s, w1, b1)
            t = Transpose<perm=[0,2,3,1]>(d)
            l = LayerNormalization(t, ls, lb)
            f0 = MatMul(l, w2)
            f1 = Add(f0, b2)
            f2 = Gelu(f1)
            f3 = Mul(f2, zh)
            f4 = MatMul(f3, w3)
            f5 = Add(f4, b3)
            f6 = Mul(f5, scale)
            k = Transpose<perm=[0,3,1,2]>(f6)
            q = Add(k, s)
            {conv('y', 'q', 'w4')}
        }}""",
        w0=weight(r, 6, 3, 3, 3), zs=channels(gate(r, 6, stream)), w1=weight(r, 6, 1, 7, 7), b1=vector(r, 6),
        ls=vector(r, 6),
        lb=vector(r, 6), w2=weight(r, 6, 12), b2=vector(r, 12), zh=gate(r, 12, hidden), w3=weight(r, 12, 6),
        b3=vector(r, 6),
        scale=gate(r, 6, layer_scale), w4=weight(r, 4, 6, 3, 3),
    )  # fmt: skip


@case(params=6 * 27 + 6 * 50 + 12 + 8 * 7 + 8 * 6 + 6 + 6 * 36)
def convnext_block_with_gated_units(r):
    return convnext(r, (), (0, 3, 7, 11))


@case(params=6 * 27 + 6 * 36)  # the layer scale closes the block: only the stem is left
def convnext_block_closed_by_its_layer_scale(r):
    return convnext(r, tuple(range(6)), (0, 3))


@case(equality="the norm still reads every channel of a closed stream")
def convnext_block_with_a_gated_stream(r):
    return convnext(r, (0, 4), (0, 3), (0, 4))


@case(params=3 + 3 * 6)  # the closed branch is one constant vector
def parallel_branches_of_which_one_is_closed(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            y1 = Gemm<transB=1>(a, w2, b2)
            y2 = MatMul(x, w3)
            y = Add(y1, y2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=np.zeros(8, np.float32), w2=weight(r, 3, 8), b2=vector(r, 3),
        w3=weight(r, 6, 3),
    )  # fmt: skip


@case(params=27 * 4 + 36 * 4)  # zero times anything
def branch_multiplied_by_a_closed_branch(r):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,H,W] y) {{
            {conv('a', 'x', 'w1')}
            {conv('b', 'x', 'w2')}
            {conv('c', 'x', 'w3')}
            g = Mul(b, zero)
            p = Mul(c, g)
            q = Add(a, p)
            {conv('y', 'q', 'w4')}
        }}""",
        w1=weight(r, 4, 3, 3, 3), w2=weight(r, 4, 3, 3, 3), w3=weight(r, 4, 3, 3, 3), w4=weight(r, 4, 4, 3, 3),
        zero=channels(np.zeros(4, np.float32)),
    )  # fmt: skip


@case(equality="the means differ from column to column, so they are no constants")
def mean_over_the_rows_of_maps_that_do_not_depend_on_the_input(r):
    w1 = weight(r, 8, 6, 1, 1)
    w1[[1, 4, 6]] = 0
    return model(
        f"""(float[N,6,7,8] x) => (float[N,4,1,8] y) {{
            {conv('e', 'x', 'w1, b1', 'pads=[0,0,0,0]')}
            {conv('d', 'e', 'w2', 'pads=[1,1,1,1], group=8')}
            q = ReduceMean(d, rows)
            {conv('y', 'q', 'w3', 'pads=[0,0,0,0]')}
        }}""",
        w1=w1, b1=1 + np.abs(vector(r, 8)), w2=weight(r, 8, 1, 3, 3), rows=[2], w3=weight(r, 4, 8, 1, 1),
    )  # fmt: skip


@case(params=6 * 8 + 8 + 2 * (4 * 4 + 4) + 2 * 4 * 3 * 3)
def channel_shuffle_of_maps_that_do_not_depend_on_the_input(r):
    """ShuffleNet with a closed branch: its maps pass a Concat, a shuffle and a Split on their way to two readers.

    Channels 8 to 15 are maps. The first half of the shuffled channels holds 0 to 3 and 8 to 11, the second the rest.
    """
    return model(
        f"""(float[N,6,8,8] x) => (float[N,4,8,8] y) {{
            {conv('e', 'x', 'w1, b1', 'pads=[0,0,0,0]')}
            a1 = Relu(e)
            {conv('d', 'x', 'w2, b2', 'pads=[0,0,0,0]')}
            {conv('dw', 'd', 'w3, b3', 'pads=[1,1,1,1], group=8')}
            a2 = Relu(dw)
            c = Concat<axis=1>(a1, a2)
            s = Gather<axis=1>(c, order)
            p, q = Split<axis=1, num_outputs=2>(s)
            {conv('u', 'p', 'w4, b4', 'pads=[0,0,0,0]')}
            {conv('v', 'q', 'w5, b5', 'pads=[0,0,0,0]')}
            y = Mul(u, v)
        }}""",
        w1=weight(r, 8, 6, 1, 1), b1=vector(r, 8), w2=np.zeros((8, 6, 1, 1), np.float32), b2=vector(r, 8),
        w3=weight(r, 8, 1, 3, 3), b3=1 + np.abs(vector(r, 8)),
        order=[0, 8, 1, 9, 2, 10, 3, 11, 15, 7, 14, 6, 13, 5, 12, 4],
        w4=weight(r, 4, 8, 1, 1), b4=vector(r, 4), w5=weight(r, 4, 8, 1, 1), b5=vector(r, 4),
    )  # fmt: skip


@case(params=8 * 6 + 8 + 8 * 9 + 8 + (8 * 4 + 4) + 9 * 4)
def tokens_of_maps_that_do_not_depend_on_the_input(r):
    """PVT's feed-forward layer: zero features with live biases, a padded depthwise convolution among tokens, SiLU.

    Behind the convolution the 8 closed features are maps, which the last layer adds for each of its 8 x 8 tokens; they
    differ at the border alone, in 9 ways.
    """
    w1 = weight(r, 6, 16)
    w1[:, 3:11] = 0
    return model(
        f"""(float[N,64,6] x) => (float[N,64,4] y) {{
            h0 = MatMul(x, w1)
            h = Add(h0, b1)
            t = Transpose<perm=[0,2,1]>(h)
            p = Reshape(t, image)
            {conv('d', 'p', 'w2, b2', 'pads=[1,1,1,1], group=16')}
            f = Reshape(d, flat)
            u = Transpose<perm=[0,2,1]>(f)
            s = Sigmoid(u)
            a = Mul(s, u)
            y0 = MatMul(a, w3)
            y = Add(y0, b3)
        }}""",
        w1=w1, b1=1 + np.abs(vector(r, 16)), image=[0, 16, 8, 8], w2=weight(r, 16, 1, 3, 3), b2=vector(r, 16),
        flat=[0, 16, 64], w3=weight(r, 16, 4), b3=vector(r, 4),
    )  # fmt: skip


@case(params=2 * (8 * 6 + 8) + 8 * 9 + (8 * 4) + 9 * 4)
def tokens_of_which_some_are_never_read_and_some_features_are_maps(r):
    """As above, with an offset per feature in front of the product of two branches, and 60 of 64 tokens read."""
    w1, w4 = weight(r, 6, 16), weight(r, 6, 16)
    w1[:, 3:11] = 0
    w4[:, 3:11] = 0
    return model(
        f"""(float[N,64,6] x) => (float[N,60,4] y) {{
            h0 = MatMul(x, w1)
            h = Add(h0, b1)
            t = Transpose<perm=[0,2,1]>(h)
            p = Reshape(t, image)
            {conv('d', 'p', 'w2', 'pads=[1,1,1,1], group=16')}
            f = Reshape(d, flat)
            u = Transpose<perm=[0,2,1]>(f)
            v0 = MatMul(x, w4)
            v = Add(v0, b4)
            a = Mul(v, u)
            y0 = MatMul(a, w3)
            y = Slice(y0, start, end, tokens)
        }}""",
        w1=w1, b1=1 + np.abs(vector(r, 16)), image=[0, 16, 8, 8], w2=weight(r, 16, 1, 3, 3), w4=w4, b4=vector(r, 16),
        flat=[0, 16, 64], w3=weight(r, 16, 4), start=[1], end=[61], tokens=[1],
    )  # fmt: skip


@case(params=4 * 8 + 4 + 4)
def closed_branch_behind_views_that_have_no_shorter_form(r):
    """CoAtNet's attention among pixels: heads are split and merged by views, and the projection is closed."""
    return model(
        f"""(float[N,8,6,6] x) => (float[N,4,6,6] y) {{
            {conv('k', 'x', 'w1, b1', 'pads=[0,0,0,0]')}
            h = Reshape(k, heads)
            t = Transpose<perm=[0,1,3,2]>(h)
            s = Softmax<axis=-1>(t)
            u = Transpose<perm=[0,1,3,2]>(s)
            m = Reshape(u, image)
            {conv('p', 'm', 'w2, b2', 'pads=[0,0,0,0]')}
            {conv('c', 'x', 'w3, b3', 'pads=[0,0,0,0]')}
            y = Add(c, p)
        }}""",
        w1=weight(r, 24, 8, 1, 1), b1=vector(r, 24), heads=[0, 2, 12, 36], image=[0, 24, 6, 6],
        w2=np.zeros((4, 24, 1, 1), np.float32), b2=vector(r, 4), w3=weight(r, 4, 8, 1, 1), b3=vector(r, 4),
    )  # fmt: skip
