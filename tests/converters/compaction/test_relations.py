"""What each relation permits, worked out by hand on axes of a few indices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Facts, Liveness, Permission
from converters.compaction.relations import Concatenate, Contract, Grouped, Pin, Product, Relation, Select, Tie

NODE = ir.node("Identity", [])


def axis(size: int, name: str = "v") -> Axis:
    return Axis(ir.Value(name=name, shape=ir.Shape([size]), type=ir.TensorType(ir.DataType.FLOAT)), 0)


def mask(text: str) -> np.ndarray:
    return np.array([letter == "1" for letter in text])


def solve(*relations: Relation, **kept: tuple[Axis, str]) -> Permission:
    """Solve after withholding the indices marked 1 from each given axis."""
    permission = Permission(relations)
    permission.solve()
    for where, text in kept.values():
        permission.withhold(where, mask(text))
    permission.resume()
    return permission


def removed(permission: Permission, where: Axis) -> str:
    return "".join("1" if goes else "0" for goes in permission.removable(where))


def test_tied_axes_lose_the_same_indices() -> None:
    a, b, c = axis(4), axis(4), axis(4)
    permission = solve(Tie(NODE, [a, b], [c]), x=(a, "1000"), y=(c, "0010"))
    assert [removed(permission, where) for where in (a, b, c)] == ["0101"] * 3


def test_a_pin_keeps_everything() -> None:
    a = axis(3)
    assert removed(solve(Pin(None, a, "because")), a) == "000"


def test_a_slice_goes_with_its_source_and_a_gather_may_go_alone() -> None:
    source, part = axis(5), axis(3)
    index = np.array([1, 2, 3])
    permission = solve(Select(NODE, source, part, index, free=False), x=(source, "01000"))
    assert removed(permission, part) == "011"
    source, part = axis(5), axis(3)
    permission = solve(Select(NODE, source, part, index, free=True), x=(source, "01000"))
    assert removed(permission, part) == "111"
    assert removed(permission, source) == "10111"


def test_a_repeated_source_stays_while_one_copy_stays() -> None:
    source, part = axis(2), axis(4)
    relation = Select(NODE, source, part, np.array([0, 0, 1, 1]), free=True)
    permission = solve(relation, x=(part, "0100"))
    assert (removed(permission, source), removed(permission, part)) == ("01", "1011")


def test_concatenated_parts_go_with_their_stretch_of_the_output() -> None:
    a, b, joined = axis(2), axis(3), axis(5)
    permission = solve(Concatenate(NODE, [a, b], joined), x=(a, "10"), y=(joined, "00001"))
    assert [removed(permission, where) for where in (a, b, joined)] == ["01", "110", "01110"]


def test_a_reshape_keeps_a_full_grid() -> None:
    # 6 = 2 x 3: index 4 of the flat axis is (1, 1), so row 1 and column 1 stay; so does their crossing only
    flat, rows, columns = axis(6), axis(2), axis(3)
    permission = solve(Product(NODE, [flat], [rows, columns]), x=(flat, "000010"))
    assert [removed(permission, where) for where in (flat, rows, columns)] == ["111101", "10", "101"]
    # two corners of the grid that share no row and no column keep all four crossings
    flat, rows, columns = axis(6), axis(2), axis(3)
    permission = solve(Product(NODE, [flat], [rows, columns]), x=(flat, "100010"))
    assert [removed(permission, where) for where in (flat, rows, columns)] == ["001001", "00", "001"]


def contract(fold: str, read: str, constants: list[float]) -> tuple[Contract, Facts, Axis]:
    data = axis(len(read))
    facts = Facts()
    facts.learn(data, np.array(constants))
    relation = Contract(NODE, data, None, fold=fold, reads=lambda live, facts: mask(read))  # type: ignore[arg-type]
    relation.require(Liveness(), facts)
    return relation, facts, data


def test_a_sum_gives_up_zeros_and_unread_indices_and_folds_constants_only_if_it_may() -> None:
    nan = float("nan")
    # live and read | zero | constant 2 | unread
    for fold, expected in (("zero", "0101"), ("bias", "0111"), ("representative", "0111")):
        relation, _, data = contract(fold, "1110", [nan, 0.0, 2.0, nan])
        assert removed(solve(relation), data) == expected


def test_need_reaches_only_indices_that_are_read() -> None:
    relation, facts, data = contract("bias", "1010", [float("nan")] * 4)
    live = Liveness()
    relation.require(live, facts)
    assert live.needed(data).tolist() == [True, False, True, False]


def test_groups_go_whole_and_the_others_keep_equal_counts() -> None:
    # three groups of two inputs and two outputs; group 1 has no output left
    data, output = axis(6), axis(6)
    relation = Grouped(NODE, data, output, 3, constants_fold=False, reads=lambda live, facts: mask("111111"))
    facts = Facts()
    facts.learn(data, np.array([np.nan, 0.0, np.nan, np.nan, np.nan, np.nan]))
    relation.require(Liveness(), facts)
    permission = solve(relation, x=(output, "100011"))
    # group 0 could lose its zero input, but group 2 needs both of its inputs, so both groups keep two
    assert removed(permission, data) == "001100"
    assert removed(permission, output) == "001100"
