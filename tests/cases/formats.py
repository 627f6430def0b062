"""How files from elsewhere differ: opsets, element types, overridable or shared initializers, QDQ, functions, names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from ml_dtypes import bfloat16

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import add, batch_norm, case, gate, model, tensor, vector, weight

# The shape operators took their axes as attributes before opset 13; 27 and 28 are newer than onnxruntime 1.31 knows.
for _opset in range(13, onnx.defs.onnx_opset_version() + 1):
    add(
        f"mlp_of_opset_{_opset}", __name__, lambda r, o=_opset: dense(r, "a = Relu(g)\n m = Sigmoid(a)", opset=o),
        params=DENSE_LIVE, no_onnxruntime=None if _opset <= 26 else "onnxruntime guarantees opsets up to 26",
    )  # fmt: skip
for _opset in (13, 17, 21, 24):
    add(
        f"wide_resnet_layer_of_opset_{_opset}", __name__,
        lambda r, o=_opset: image(
            r, "n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)\n m = Relu(n)", opset=o,
            **batch_norm(r, 8, "bn", {1: 0.7, 4: 1.3, 6: -0.9}),
        ),
        params=image_params(6) + 24,
    )  # fmt: skip


def retyped(r, onnx_type, numpy_type, middle="m = Sigmoid(g)"):
    """The dense sandwich with weights, inputs and outputs of another floating-point type."""
    made = dense(r, middle)
    for t in made.graph.initializer:
        t.CopyFrom(tensor(onnx.numpy_helper.to_array(t).astype(numpy_type), t.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = onnx_type
    return made


@case(params=DENSE_LIVE)
def weights_in_float64(r):
    return retyped(r, onnx.TensorProto.DOUBLE, np.float64)


@case(params=DENSE_LIVE, tolerance=5e-3)  # float16 has 11 bits: a folded weight is rounded again, 2^-11 each
def weights_in_float16(r):
    return retyped(r, onnx.TensorProto.FLOAT16, np.float16)


@case(params=DENSE_LIVE, tolerance=4e-2, no_onnxruntime="its CPU provider has no bfloat16 Gemm")  # 8 bits
def weights_in_bfloat16(r):
    return retyped(r, onnx.TensorProto.BFLOAT16, bfloat16)


@case(params=DENSE_LIVE, tolerance=5e-3)
def float16_weights_cast_to_float32_at_run_time(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            w1f = Cast<to=1>(w1)
            w2f = Cast<to=1>(w2)
            h = Gemm<transB=1>(x, w1f, b1)
            g = Mul(h, gate)
            a = Relu(g)
            y = Gemm<transB=1>(a, w2f, b2)
        }""",
        w1=weight(r, 8, 6).astype(np.float16), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8).astype(np.float16),
        b2=vector(r, 3),
    )  # fmt: skip


def overridable(made, *names):
    """List these initializers among the inputs too, so that the caller may give other values."""
    for t in made.graph.initializer:
        if t.name in names:
            made.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    return made


@case(nothing="the gate may be given by the caller: an initializer that is an input is a default, not a constant")
def gate_that_is_an_overridable_initializer(r):
    return overridable(dense(r, "m = Relu(g)"), "gate")


@case(equality="the weights may be given by the caller, so their shapes may not change")
def weights_that_are_overridable_initializers(r):
    return overridable(dense(r, "m = Relu(g)"), "w1", "b1", "w2", "b2")


@case(equality="one layer's weights may be given by the caller")
def second_weights_that_are_overridable_initializers(r):
    return overridable(dense(r, "m = Sigmoid(g)"), "w2")


@case(params=DENSE_LIVE)
def weights_in_constant_nodes(r):
    made = dense(r, "m = Sigmoid(g)")
    for t in list(made.graph.initializer):
        made.graph.node.insert(0, onnx.helper.make_node("Constant", [], [t.name], value=t))
    del made.graph.initializer[:]
    return made


@case(params=DENSE_LIVE)
def one_initializer_that_is_bias_and_offset(r):
    return dense(r, "s = Sigmoid(g)\n o = Sub(s, b1)\n t = Mul(o, b1)\n m = Tanh(t)")


@case(params=DENSE_LIVE)
def output_that_is_also_read_inside(r):
    made = dense(r, "m = Relu(g)")
    made.graph.node.append(onnx.helper.make_node("Softmax", ["y"], ["p"]))
    made.graph.output.append(onnx.helper.make_tensor_value_info("p", onnx.TensorProto.FLOAT, ["N", 3]))
    return made


@case(params=DENSE_LIVE)
def input_that_is_also_an_output(r):
    made = dense(r, "m = Relu(g)")
    made.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["same"]))
    made.graph.output.append(onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, ["N", 6]))
    return made


@case(params=DENSE_LIVE + 4)
def constant_that_is_an_output(r):
    made = dense(r, "m = Relu(g)")
    made.graph.initializer.append(tensor(vector(r, 4), "fixed"))
    made.graph.output.append(onnx.helper.make_tensor_value_info("fixed", onnx.TensorProto.FLOAT, [4]))
    return made


@case(params=DENSE_LIVE + 8)
def gate_that_is_an_output(r):
    made = dense(r, "m = Relu(g)")
    made.graph.output.append(onnx.helper.make_tensor_value_info("gate", onnx.TensorProto.FLOAT, [8]))
    return made


@case(params=DENSE_LIVE)
def unused_initializers_and_dead_nodes(r):
    made = dense(r, "m = Relu(g)\n dead = Sigmoid(h)\n dead2 = MatMul(dead, junk)")
    made.graph.initializer.append(tensor(weight(r, 8, 50), "junk"))
    made.graph.initializer.append(tensor(vector(r, 70), "never"))
    return made


@case(params=DENSE_LIVE)
def names_with_dots_slashes_and_colons(r):
    made = dense(r, "m = Relu(g)")
    names = {"h": "model/layer.0/fc:0", "g": "model//gate;1", "m": "ünïcode relu", "w1": "fc.weight/read:0"}
    for node in made.graph.node:
        node.name = f"/node/{node.output[0]}::{node.op_type}"
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for t in made.graph.initializer:
        t.name = names.get(t.name, t.name)
    return made


@case(params=DENSE_LIVE)
def names_that_a_tool_might_have_chosen(r):
    """Values already called what an engine could call its own new values."""
    made = dense(r, "m = Relu(g)")
    names = {"h": "w2_compact", "g": "b2_folded", "m": "w1_1", "w1": "y_bias", "gate": "w1_sliced"}
    for node in made.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for t in made.graph.initializer:
        t.name = names.get(t.name, t.name)
    return made


@case(params=image_params(5))
def every_dimension_dynamic_but_the_channels(r):
    return image(r, "m = Relu(g)")


@case(params=image_params(5), sizes={"C": (3, 3)})
def number_of_input_channels_not_declared(r):
    made = image(r, "m = Relu(g)")
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    return made


@case(params=image_params(5))
def dimensions_of_the_output_without_a_name(r):
    made = image(r, "m = Relu(g)")
    for dimension in made.graph.output[0].type.tensor_type.shape.dim:
        dimension.Clear()
    return made


@case(params=image_params(5))
def shapes_recorded_for_every_value(r):
    made = onnx.shape_inference.infer_shapes(image(r, "m = Relu(g)"))
    assert made.graph.value_info
    return made


@case(params=DENSE_LIVE)
def function_that_holds_the_gate(r):
    text = """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        case (float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = local.gated(h, gate)
            y = Gemm<transB=1>(g, w2, b2)
        }
        <domain: "local", opset_import: ["" : 20]>
        gated (v, z) => (o) {
            p = Mul(v, z)
            o = Relu(p)
        }"""
    made = onnx.parser.parse_model(text)
    weights = {"w1": weight(r, 8, 6), "b1": vector(r, 8), "gate": gate(r, 8), "w2": weight(r, 3, 8), "b2": vector(r, 3)}
    made.graph.initializer.extend(tensor(v, k) for k, v in weights.items())
    return made


@case(nothing="an unknown operator reads the gated value")
def unknown_operator_reads_the_gated_value(r):
    return dense(r, "m = Hardmax<axis=-1>(g)")


@case(equality="Det has no rule of any kind")
def determinant_of_gated_matrices(r):
    return model(
        """(float[N,6] x) => (float[N] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            q = Reshape(g, shape)
            y = Det(q)
        }""",
        w1=weight(r, 9, 6), b1=vector(r, 9), gate=gate(r, 9), shape=[-1, 3, 3],
    )  # fmt: skip


def quantised(r, closed=(1, 4, 6), per_channel=False):
    """A QDQ pair on activations and weights; scales are powers of two, so that float32 and float64 round alike."""

    def q(a):
        return np.clip(np.rint(a * 64), -127, 127).astype(np.int8)

    w1, w2 = q(weight(r, 8, 6)), q(weight(r, 3, 8))
    w1[list(closed)] = 0
    b1 = vector(r, 8)
    b1[list(closed)] = 0
    scale1 = np.full(8, 1 / 64, np.float32) if per_channel else np.float32(1 / 64)
    zero1 = np.zeros(8, np.int8) if per_channel else np.int8(0)
    axis = "<axis=0>" if per_channel else ""
    return model(
        f"""(float[N,6] x) => (float[N,3] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            w1d = DequantizeLinear{axis}(w1, s1, z1)
            h = Gemm<transB=1>(xd, w1d, b1)
            hq = QuantizeLinear(h, s, z)
            hd = DequantizeLinear(hq, s, z)
            a = Relu(hd)
            w2d = DequantizeLinear(w2, s2, z2)
            y = Gemm<transB=1>(a, w2d, b2)
        }}""",
        s=np.float32(1 / 16), z=np.int8(3), w1=w1, s1=scale1, z1=zero1, b1=b1, w2=w2, s2=np.float32(1 / 64),
        z2=np.int8(0), b2=vector(r, 3),
    )  # fmt: skip


QUANTISED = "quantised graphs are at least kept correctly"


@case(equality=QUANTISED, no_double="QuantizeLinear takes no float64")
def quantised_layers_with_zero_filters(r):
    return quantised(r)


@case(equality=QUANTISED, no_double="QuantizeLinear takes no float64")
def quantised_layers_with_a_scale_per_channel(r):
    return quantised(r, per_channel=True)


@case(equality=QUANTISED, no_double="QuantizeLinear takes no float64")
def quantised_activation_behind_a_gate(r):
    return image(
        r, "q = QuantizeLinear(g, s, z)\n d = DequantizeLinear(q, s, z)\n m = Relu(d)",
        s=np.float32(1 / 16), z=np.uint8(128),
        kernel=1, pad=0,
    )  # fmt: skip


@case(equality=QUANTISED, no_double="QuantizeLinear takes no float64")
def dynamically_quantised_activation(r):
    return dense(r, "q, s, z = DynamicQuantizeLinear(g)\n m = DequantizeLinear(q, s, z)")


@case(equality="integer matrix product on quantised weights", no_double="QuantizeLinear takes no float64")
def integer_matrix_product(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a = Relu(g)
            q = QuantizeLinear(a, s, z)
            p = MatMulInteger(q, w2)
            f = Cast<to=1>(p)
            y = Mul(f, s)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), s=np.float32(1 / 16), z=np.uint8(0),
        w2=np.clip(np.rint(weight(r, 8, 3) * 64), -127, 127).astype(np.int8),
    )  # fmt: skip


@case(equality="values in a sequence are out of sight")
def gated_value_put_into_a_sequence(r):
    return dense(r, "q = SequenceConstruct(g, h)\n p = SequenceAt(q, zero)\n m = Relu(p)", zero=np.int64(0))


@case(equality="random numbers would differ, their shape alone is used")
def shape_of_the_gated_value_fills_a_constant(r):
    return dense(r, "s = Shape(g)\n c = ConstantOfShape<value = float[1] {0.5}>(s)\n m = Add(g, c)")


@case(params=DENSE_LIVE)
def outputs_of_which_one_is_a_copy_of_the_other(r):
    made = dense(r, "m = Sigmoid(g)")
    made.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["z"]))
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(made.graph.output[0])
    copy.name = "z"
    made.graph.output.append(copy)
    return made


@case(equality="an output is declared with named sizes that its readers know as numbers")
def output_with_names_for_sizes_that_are_known(r):
    return model(
        """(float[N,3,5,6] x) => (float[N,8,U,V] g, float[N,4,P,Q] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, n_s, n_b, n_m, n_v)
            a = Relu(n)
            y = Conv<pads=[1,1,1,1]>(a, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=gate(r, 8).reshape(-1, 1, 1), w2=weight(r, 4, 8, 3, 3),
        b2=vector(r, 4), **batch_norm(r, 8, "n"),
    )  # fmt: skip
