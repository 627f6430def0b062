"""LSTM, GRU and RNN between gated layers: features of the input may go, the state feeds itself."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from cases.table import add, case, gate, model, tensor, weight

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


@case(params=6 * 8 + 16 * (8 + 4 + 2) + 4 * 3)
def lstm_with_units_of_zero_weights(r):
    made = recurrent(r, "LSTM", where="none")
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


UNITS = 6


def kept_units(r, kind, dead, directions=1, where="weights", attributes="", closed_bias=True, extra="", opset=20):
    """x [S, N, 4] -> kind (6 units) -> MatMul [.., 3]; the units in `dead` have nothing to say.

    Args:
        where: "weights" zeroes all rows of a unit, "proposal" only those of the gate that proposes new values,
            "readers" the unit's column of R and its row of the next layer.
    """
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    proposal = {"LSTM": 3, "GRU": 2, "RNN": 0}[kind]
    d = directions
    direction = "bidirectional" if d == 2 else "forward"
    w, rec, b = (
        weight(r, d, gates * UNITS, 4) * 2,
        weight(r, d, gates * UNITS, UNITS) * 2,
        weight(r, d, 2 * gates * UNITS),
    )
    w2 = weight(r, d * UNITS, 3)
    for unit in dead:
        if where == "readers":
            rec[:, :, unit] = 0
            w2[[k * UNITS + unit for k in range(d)]] = 0
            continue
        for gate_number in range(gates) if where == "weights" else (proposal,):
            row = gate_number * UNITS + unit
            w[:, row], rec[:, row] = 0, 0
            if closed_bias:
                b[:, row], b[:, gates * UNITS + row] = 0, 0
    return model(
        f"""(float[S,N,4] x) => (float[S,N,3] y) {{
            o = {kind}<hidden_size={UNITS}, direction="{direction}"{attributes}>(x, w, rec, b{extra})
            t = Transpose<perm=[0,2,1,3]>(o)
            f = Reshape(t, flat)
            y = MatMul(f, w2)
        }}""",
        opset=opset, w=w, rec=rec, b=b, flat=[0, 0, d * UNITS], w2=w2,
    )  # fmt: skip


def unit_params(kind, units, directions=1):
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * units
    return directions * (rows * (4 + units + 2) + units * 3)


for _kind in GATES:
    for _d in (1, 2):
        _name = f"{_kind.lower()}{'_in_both_directions' if _d == 2 else ''}"
        add(
            f"{_name}_with_closed_units", __name__,
            lambda r, k=_kind, d=_d: kept_units(r, k, (1, 4), d), params=unit_params(_kind, 4, _d),
        )  # fmt: skip
        add(
            f"{_name}_with_units_that_nobody_reads", __name__,
            lambda r, k=_kind, d=_d: kept_units(r, k, (0, 3), d, where="readers"), params=unit_params(_kind, 4, _d),
        )  # fmt: skip
    if _kind != "RNN":
        add(
            f"{_kind.lower()}_with_units_that_propose_nothing", __name__,
            lambda r, k=_kind: kept_units(r, k, (2, 5), where="proposal"), params=unit_params(_kind, 4),
        )  # fmt: skip
    add(
        f"{_kind.lower()}_with_closed_units_whose_bias_is_open", __name__,
        lambda r, k=_kind: kept_units(r, k, (1, 4), closed_bias=False),
        nothing="the bias moves the state away from zero",
    )  # fmt: skip


@case(params=unit_params("GRU", 4))
def gru_with_linear_before_reset_and_closed_units(r):
    return kept_units(r, "GRU", (1, 4), attributes=", linear_before_reset=1")


@case(nothing="the biases cancel, but the reset gate scales one of them alone")
def gru_with_linear_before_reset_and_biases_that_cancel(r):
    made = kept_units(r, "GRU", (1, 4), attributes=", linear_before_reset=1")
    _set_bias(made, [2 * UNITS + 1, 2 * UNITS + 4], 0.5)
    _set_bias(made, [5 * UNITS + 1, 5 * UNITS + 4], -0.5)
    return made


@case(params=unit_params("GRU", 4))
def gru_with_biases_that_cancel(r):
    made = kept_units(r, "GRU", (1, 4))
    _set_bias(made, [2 * UNITS + 1, 2 * UNITS + 4], 0.5)
    _set_bias(made, [5 * UNITS + 1, 5 * UNITS + 4], -0.5)
    return made


def _set_bias(made, places, value):
    for t in made.graph.initializer:
        if t.name == "b":
            a = np.array(numpy_helper.to_array(t))
            a[:, places] = value
            t.CopyFrom(numpy_helper.from_array(a, t.name))


@case(params=unit_params("LSTM", 4) + 3 * 4 + 4 * 4, sizes={"S": (4, 4)}, integers={"lengths": (4, 5)})
def lstm_with_peepholes_lengths_and_first_states(r):
    """Units 1 and 4 are closed; the first states come from layers that are closed there too."""
    made = kept_units(r, "LSTM", (1, 4), extra=", lengths, h0, c0, p")
    v = weight(r, 4, UNITS)
    v[:, [1, 4]] = 0
    del made.graph.node[:]
    text = model(
        f"""(float[S,N,4] x, int32[N] lengths, float[1,N,4] u) => (float[S,N,3] y) {{
            h0 = MatMul(u, v)
            c0 = Neg(h0)
            o = LSTM<hidden_size={UNITS}>(x, w, rec, b, lengths, h0, c0, p)
            f = Squeeze(o, one)
            y = MatMul(f, w2)
        }}""",
        v=v, p=weight(r, 1, 3 * UNITS), one=[1],
    )  # fmt: skip
    text.graph.initializer.extend(t for t in made.graph.initializer if t.name != "flat")
    return text


@case(nothing="a first state that is not zero moves through the forget gate")
def lstm_with_closed_units_and_a_first_state(r):
    made = kept_units(r, "LSTM", (1, 4))
    made.graph.node[0].input.extend(["", "", "c0"])
    made.graph.initializer.append(tensor(np.full((1, 1, UNITS), 0.5, np.float32), "c0"))
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    return made


@case(params=unit_params("RNN", 3))
def rnn_whose_units_only_read_each_other(r):
    """Units 0, 2 and 5 read one another; nobody else does."""
    made = kept_units(r, "RNN", ())
    for t in made.graph.initializer:
        a = np.array(numpy_helper.to_array(t))
        if t.name == "rec":
            a[:, np.ix_([1, 3, 4], [0, 2, 5])[0], np.ix_([1, 3, 4], [0, 2, 5])[1]] = 0
        if t.name == "w2":
            a[[0, 2, 5]] = 0
        if t.name in ("rec", "w2"):
            t.CopyFrom(numpy_helper.from_array(a, t.name))
    return made


@case(params=unit_params("RNN", 4))
def rnn_in_reverse_with_closed_units(r):
    made = kept_units(r, "RNN", (1, 4))
    next(a for a in made.graph.node[0].attribute if a.name == "direction").s = b"reverse"
    return made


@case(params=20 * (4 + 5 + 2) - 4 * (4 + 5 + 2) - 16 + 2 * (5 - 1) * 3)
def lstm_whose_states_are_all_read_with_a_closed_unit(r):
    """Y_h and Y_c are read besides Y, unit 2 of 5 is closed in all gates."""
    w, rec, b = weight(r, 1, 20, 4) * 2, weight(r, 1, 20, 5) * 2, weight(r, 1, 40)
    for k in range(4):
        w[:, k * 5 + 2], rec[:, k * 5 + 2], b[:, k * 5 + 2], b[:, 20 + k * 5 + 2] = 0, 0, 0, 0
    return model(
        """(float[S,N,4] x) => (float[1,N,3] y, float[1,N,3] e) {
            o, oh, oc = LSTM<hidden_size=5>(x, w, rec, b)
            y = MatMul(oh, w2)
            e = MatMul(oc, w3)
        }""",
        w=w, rec=rec, b=b, w2=weight(r, 5, 3), w3=weight(r, 5, 3),
    )  # fmt: skip
