"""Is the public interface of l0runtime.gates the one that is promised?"""

from __future__ import annotations

import l0runtime.gates


def test_public_names_are_listed_in_the_table_of_contents() -> None:
    assert l0runtime.gates.__doc__ is not None
    for name in l0runtime.gates.__all__:
        assert hasattr(l0runtime.gates, name)
        assert name in l0runtime.gates.__doc__


def test_every_public_name_has_a_docstring() -> None:
    for name in l0runtime.gates.__all__:
        if name != "EvaluationRule":  # a Literal
            assert getattr(l0runtime.gates, name).__doc__
