"""Does the engine convert every case of the operator table exactly, and remove what can go?"""

from __future__ import annotations

import functools

import pytest
from cases import CASES
from cases.shortfall import SHORTFALL
from judge import Judgement

from converters.compaction import compact


@functools.lru_cache(maxsize=2)
def judgement(name: str) -> Judgement:
    return Judgement(CASES[name], compact)


@pytest.mark.parametrize("name", CASES)
def test_compact_model_is_valid_and_computes_the_same_function(name: str) -> None:
    judged = judgement(name)
    checks = (judged.valid, judged.exact, judged.rounded, judged.runs, judged.deterministic, judged.idempotent)
    assert [wrong for check in checks if (wrong := check())] == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=SHORTFALL[name], strict=True) if name in SHORTFALL else ())
        for name, case in CASES.items()
        if case.equality is None
    ],
)
def test_compact_model_has_lost_what_the_case_says(name: str) -> None:
    assert judgement(name).removed() is None
