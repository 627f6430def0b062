"""Does every reader of a shared value keep its own indices exactly where a Gather in front of it pays?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import LIMIT, compacted, difference, graph, operators, shapes

from converters.compaction import branches, trials

RNG = np.random.default_rng(4)
HEADS, SIZE, TOKENS = 8, 16, 6
CLOSED = ((0, 2, 3, 6), (1, 2, 5, 7))


def layers(width: int = 256, reader: str = "Add", closed: tuple[tuple[int, ...], ...] = CLOSED) -> onnx.ModelProto:
    """Two layers that add (or multiply by) one shared [1, heads, tokens, 16] and close different heads of 8."""
    weights: dict[str, np.ndarray] = {}
    for layer, gone in enumerate(closed):
        weights[f"w{layer}"] = RNG.standard_normal((width, HEADS * SIZE)) / 16
        out = RNG.standard_normal((HEADS, SIZE, width))
        out[list(gone)] = 0
        weights[f"o{layer}"] = out.reshape(-1, width) / 16
    body = "".join(
        f"""h{i} = MatMul(x{i}, w{i})  r{i} = Reshape(h{i}, split)  t{i} = Transpose<perm=[0,2,1,3]>(r{i})
            s{i} = {reader}(t{i}, b)  e{i} = Sigmoid(s{i})
            u{i} = Transpose<perm=[0,2,1,3]>(e{i})  v{i} = Reshape(u{i}, join)  x{i + 1} = MatMul(v{i}, o{i})
            """
        for i in range(len(closed))
    )
    rows = SIZE if reader == "MatMul" else TOKENS
    return graph(
        f"""(double[N,{TOKENS},{width}] x0, double[1,{rows},4] p) => (double[N,{TOKENS},{width}] x{len(closed)}) {{
            a = MatMul(p, wb)  c = Reshape(a, heads)  b = Transpose<perm=[0,2,1,3]>(c)
            {body}
        }}""",
        split=[0, TOKENS, HEADS, SIZE],
        join=[0, TOKENS, HEADS * SIZE],
        heads=[1, rows, HEADS, SIZE],
        wb=RNG.standard_normal((4, HEADS * SIZE)),
        **weights,
    )


def feed(width: int = 256, rows: int = TOKENS) -> dict[str, np.ndarray]:
    return {"x0": RNG.standard_normal((2, TOKENS, width)), "p": RNG.standard_normal((1, rows, 4))}


@pytest.mark.parametrize("reader", ["Add", "Mul", "Sub", "MatMul"])
def test_each_layer_keeps_its_own_heads(reader: str) -> None:
    model = layers(reader=reader)
    compact, result = compacted(model)
    assert operators(compact).count("Gather") == 2
    assert {shapes(compact)[name] for name in ("w0", "w1")} == {(256, 4 * SIZE)}
    assert {s.indices for s in result.plan.selected} == {(1, 4, 5, 7), (0, 3, 4, 6)}
    assert difference(model, compact, **feed(rows=SIZE if reader == "MatMul" else TOKENS)) < LIMIT


def test_heads_that_no_layer_needs_leave_the_shared_value() -> None:
    compact, _ = compacted(layers())
    assert shapes(compact)["wb"] == (4, 7 * SIZE)  # head 2 is closed in both layers
    taken = {node.input[1] for node in compact.graph.node if node.op_type == "Gather"}
    indices = [onnx.numpy_helper.to_array(t).tolist() for t in compact.graph.initializer if t.name in taken]
    assert sorted(indices) == [[0, 2, 3, 5], [1, 3, 4, 6]]


def test_layers_that_agree_need_no_gather() -> None:
    model = layers(closed=(CLOSED[0], CLOSED[0]))
    compact, _ = compacted(model)
    assert "Gather" not in operators(compact)
    assert shapes(compact)["w0"] == (256, 4 * SIZE)
    assert difference(model, compact, **feed()) < LIMIT


def test_a_gather_that_costs_more_than_it_saves_is_not_written() -> None:
    model = layers(width=8)
    compact, result = compacted(model)
    assert "Gather" not in operators(compact)
    assert shapes(compact)["w0"] == (8, 7 * SIZE)
    assert difference(model, compact, **feed(8)) < LIMIT
    assert any("s0" in str(kept) or "t0" in str(kept) or "h0" in str(kept) for kept in result.plan.kept)


def test_without_the_options_a_head_stays_in_all_layers_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "sharing_options", lambda analysis, permission: [])
    compact, _ = compacted(layers())
    assert shapes(compact)["w0"] == (256, 7 * SIZE)


def test_a_gather_of_other_indices_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers()
    gather = branches._gather

    def shifted(edit, node, value, source, wanted, staying):  # type: ignore[no-untyped-def]
        return gather(edit, node, value, source, np.roll(wanted, 1), staying)

    monkeypatch.setattr(branches, "_gather", shifted)
    compact, _ = compacted(model)
    assert difference(model, compact, **feed()) > 1e-3
