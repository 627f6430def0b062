"""Are axes tied, split and told apart as the operators demand?"""

from __future__ import annotations

import pytest

from l0runtime.gates.symbolic_axes import (
    axis_size,
    concatenate,
    factors,
    leaves,
    mark,
    new_axis,
    pin,
    positions,
    regroup,
    unify,
)


def test_an_axis_of_length_one_has_no_space() -> None:
    assert new_axis(1) == ()
    assert axis_size(()) == 1


def test_the_finer_of_two_tied_axes_splits_the_coarser_one_everywhere() -> None:
    whole, heads, size = new_axis(12), new_axis(3), new_axis(4)
    elsewhere = whole
    unify(whole, (*heads, *size))
    assert [space.size for space in factors(elsewhere)] == [3, 4]
    assert factors(elsewhere)[0] is factors(heads)[0]


def test_axes_that_cut_each_other_are_pinned() -> None:
    left, right = (*new_axis(4), *new_axis(9)), (*new_axis(6), *new_axis(6))
    unify(left, right)
    assert {space.pinned for space in leaves((*left, *right))} == {"two structures that do not match meet on it"}


def test_marks_and_pins_survive_a_later_merge_and_split() -> None:
    marked, pinned, other = new_axis(12), new_axis(12, "a reason"), new_axis(3)
    mark(marked, "is_mixed")
    unify(marked, pinned)
    unify(marked, (*other, *new_axis(4)))
    assert all(space.is_mixed and space.pinned == "a reason" for space in factors(marked))


def test_a_reshape_splits_and_merges_without_losing_an_index() -> None:
    batch, columns = new_axis(2), new_axis(24)
    result = regroup([batch, columns], [2, 3, 4, 2])
    assert result is not None
    back = regroup(result, [6, 8])
    assert back is not None
    assert [axis_size(axis) for axis in back] == [6, 8]
    assert positions(columns, factors(columns)[1]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 3


def test_a_reshape_that_cuts_through_a_space_is_refused() -> None:
    assert regroup([new_axis(2), new_axis(9)], [3, 6]) is None


def test_positions_of_one_part_of_a_concatenation() -> None:
    first, second = new_axis(2), new_axis(3)
    axis = concatenate([first, second])
    assert positions(axis, second[0]).tolist() == [-1, -1, 0, 1, 2]
    assert positions((*axis, *new_axis(2)), first[0]).tolist() == [0, 0, 1, 1, -1, -1, -1, -1, -1, -1]


def test_a_space_twice_in_one_product_has_no_positions() -> None:
    (space,) = new_axis(3)
    with pytest.raises(ValueError, match="the space occurs twice in the axis"):
        positions((space, space), space)


def test_a_parameter_on_a_concatenation_is_tied_to_its_parts() -> None:
    first, second = new_axis(2), new_axis(3)
    axis, scale = concatenate([first, second]), new_axis(5)
    unify(scale, axis)
    assert leaves(scale) == [first[0], second[0]]


def test_two_concatenations_with_other_borders_are_pinned_down_to_their_parts() -> None:
    a, b, c, d = new_axis(2), new_axis(3), new_axis(3), new_axis(2)
    unify(concatenate([a, b]), concatenate([c, d]))
    for axis in (a, b, c, d):
        assert factors(axis)[0].pinned == "two concatenations that do not match meet on it"


def test_pinning_a_concatenation_pins_its_parts() -> None:
    first = new_axis(2)
    pin(concatenate([first, new_axis(3)]), "why")
    assert first[0].pinned == "why"
