"""Do the gate benchmarks show what they are there to show, in a run of a few seconds?"""

from __future__ import annotations

import pytest

from benchmarks.gates.report import table
from benchmarks.gates.wide_resnet_recipe import train
from l0runtime.gates import gates_of


def test_at_the_paper_s_rate_no_gate_of_the_wide_resnet_will_close_and_the_run_says_so() -> None:
    model, told = train(epochs=3, strength=0.001, own_rate=None, seed=0)
    assert not any(bool(gate.closed().any()) for gate in gates_of(model).values())
    assert told[0].startswith("No gate will close: after 12 of 36 steps the nearest, in blocks.")
    assert told[0].endswith("Give the gates a larger learning rate of their own (param_groups), or raise the penalty.")


def test_a_result_becomes_a_markdown_table() -> None:
    assert table(["a", "b"], [(1, 2.5)]) == "| a | b |\n| --- | --- |\n| 1 | 2.5 |"


@pytest.mark.parametrize("name", ["overhead", "targets", "recipe", "transformers", "latency"])
def test_the_readme_holds_the_tables_of_the_result_files(name: str) -> None:
    from benchmarks.gates import report

    text = (report.FOLDER / "README.md").read_text(encoding="utf-8")
    assert getattr(report, name)() in text
