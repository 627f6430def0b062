"""LSTM, GRU and RNN between gated layers: features of the input may go, the state feeds itself."""

from __future__ import annotations

import numpy as np

from cases.table import add, case, gate, model, weight

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 5


def recurrent(r, kind, directions=1, attributes="", where="input", closed=(1, 4, 6), extra="", opset=20):
    """x [S, N, 6] -> MatMul [.., 8] -> gate -> kind (5 units) -> gate -> MatMul; `where` names the gate in force."""
    n, d = GATES[kind] * HIDDEN, directions
    direction = 'direction="bidirectional"' if d == 2 else 'direction="forward"'
    z_in = gate(r, 8, closed) if where == "input" else np.ones(8, np.float32)
    z_out = gate(r, d * HIDDEN, (0, 3)) if where == "output" else np.ones(d * HIDDEN, np.float32)
    return model(
        f"""(float[S,N,6] x) => (float[S,N,3] y) {{
            h = MatMul(x, w1)
            g = Mul(h, z_in)
            o, oh = {kind}<hidden_size={HIDDEN}, {direction}{attributes}>(g, w, rec, b)
            t = Transpose<perm=[0,2,1,3]>(o)
            f = Reshape(t, flat)
            m = Mul(f, z_out)
            y = MatMul(m, w2)
        }}""",
        opset=opset, w1=weight(r, 6, 8), z_in=z_in, w=weight(r, d, n, 8) * 2, rec=weight(r, d, n, HIDDEN) * 2,
        b=weight(r, d, 2 * n), flat=[0, 0, d * HIDDEN], z_out=z_out, w2=weight(r, d * HIDDEN, 3),
    )  # fmt: skip


def params(kind: str, inputs: int, directions: int = 1) -> int:
    n = GATES[kind] * HIDDEN
    return 6 * inputs + directions * n * (inputs + HIDDEN + 2) + directions * HIDDEN * 3


for _kind in GATES:
    for _d in (1, 2):
        _name = f"{_kind.lower()}{'_in_both_directions' if _d == 2 else ''}"
        add(
            f"{_name}_that_reads_gated_features", __name__,
            lambda r, k=_kind, d=_d: recurrent(r, k, d), params=params(_kind, 5, _d),
        )  # fmt: skip
        add(
            f"{_name}_whose_outputs_are_gated", __name__,
            lambda r, k=_kind, d=_d: recurrent(r, k, d, where="output"),
            equality="every unit of the state feeds every other: a gate behind it frees the reader at most",
        )  # fmt: skip


@case(params=params("GRU", 5))
def gru_with_linear_before_reset(r):
    return recurrent(r, "GRU", attributes=", linear_before_reset=1")


@case(equality="units whose gates all have zero weights stay at their first state")
def lstm_with_units_of_zero_weights(r):
    made = recurrent(r, "LSTM", where="none")
    from onnx import numpy_helper

    for t in made.graph.initializer:
        if t.name in ("w", "rec", "b"):
            a = np.array(numpy_helper.to_array(t))
            for k in range(4):
                a[:, k * HIDDEN + 2] = 0
                if t.name == "b":
                    a[:, 20 + k * HIDDEN + 2] = 0
            t.CopyFrom(numpy_helper.from_array(a, t.name))
    return made


@case(equality="the last state is read, not the sequence")
def lstm_whose_last_state_is_read(r):
    return model(
        """(float[S,N,6] x) => (float[1,N,3] y) {
            h = MatMul(x, w1)
            a = Sigmoid(h)
            g = Mul(a, z)
            o, oh, oc = LSTM<hidden_size=5>(g, w, rec, b)
            s = Add(oh, oc)
            m = Mul(s, z2)
            y = MatMul(m, w2)
        }""",
        w1=weight(r, 6, 8), z=gate(r, 8), w=weight(r, 1, 20, 8) * 2, rec=weight(r, 1, 20, 5) * 2, b=weight(r, 1, 40),
        z2=gate(r, 5, (0, 3)), w2=weight(r, 5, 3),
    )  # fmt: skip


@case(equality="the first state comes from a gated layer; a closed unit starts at zero and moves on")
def gru_with_a_gated_first_state(r):
    return model(
        """(float[S,N,6] x, float[1,N,4] v) => (float[1,N,3] y) {
            h0 = MatMul(v, w1)
            g = Mul(h0, z)
            o, oh = GRU<hidden_size=5>(x, w, rec, b, "", g)
            y = MatMul(oh, w2)
        }""",
        w1=weight(r, 4, 5), z=gate(r, 5, (0, 3)), w=weight(r, 1, 15, 6) * 2, rec=weight(r, 1, 15, 5) * 2,
        b=weight(r, 1, 30),
        w2=weight(r, 5, 3),
    )  # fmt: skip


@case(equality="constants that are not zero feed the recurrence: their columns fold into its bias")
def lstm_that_reads_constants(r):
    return model(
        """(float[S,N,6] x) => (float[S,1,N,5] o) {
            h = MatMul(x, w1)
            g = Mul(h, z)
            a = Sigmoid(g)
            o = LSTM<hidden_size=5>(a, w, rec, b)
        }""",
        w1=weight(r, 6, 8), z=gate(r, 8), w=weight(r, 1, 20, 8) * 2, rec=weight(r, 1, 20, 5) * 2, b=weight(r, 1, 40),
    )  # fmt: skip


def fed_with_constants(kind):
    """Closed features are 1/2 behind a sigmoid."""

    def build(r):
        n = GATES[kind] * HIDDEN
        return model(
            f"""(float[S,N,6] x) => (float[S,1,N,5] o) {{
                h = MatMul(x, w1)
                g = Mul(h, z)
                a = Sigmoid(g)
                o = {kind}<hidden_size={HIDDEN}>(a, w, rec, b)
            }}""",
            w1=weight(r, 6, 8), z=gate(r, 8), w=weight(r, 1, n, 8) * 2, rec=weight(r, 1, n, HIDDEN) * 2,
            b=weight(r, 1, 2 * n),
        )  # fmt: skip

    return build


for _kind in ("GRU", "RNN"):
    add(
        f"{_kind.lower()}_that_reads_constants", __name__, fed_with_constants(_kind),
        equality="constants that are not zero feed the recurrence: their columns fold into its bias",
    )  # fmt: skip
