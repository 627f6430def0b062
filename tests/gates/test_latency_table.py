"""Does a table of layer times give the latency of any widths, with the right derivative, and survive a file?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from l0runtime.errors import ModelFileError
from l0runtime.gates.cost import CostModel, Term
from l0runtime.gates.latency_table import GRID, LatencyTable, TimedLayer


def share(*gates: int, count: int = 3) -> CostModel:
    """The product of the shares of some gate vectors."""
    return CostModel([Term(1.0, gates)], count)


def product_times(scale: float) -> tuple[tuple[float, ...], ...]:
    """Times that are the product of both sides' shares, which bilinear interpolation gives back exactly."""
    return tuple(tuple(scale * a * b for b in GRID) for a in GRID)


def table() -> LatencyTable:
    """Gate 0 between two layers, gate 1 behind the second, gate 2 a block around the second."""
    steps = tuple(tuple(float(position) for position in range(len(GRID))) for _ in GRID)
    layers = (
        TimedLayer("first", "Conv", share(), share(0), share(), product_times(2.0)),
        TimedLayer("second", "Conv", share(0), share(1), share(2), product_times(4.0)),
        TimedLayer("depthwise", "Conv", None, share(1), share(), steps),
    )
    values = CostModel([Term(3.0, (0,)), Term(1.0, ())], 3)
    return LatencyTable(layers, values, 1.0, 0.5, ("a", "b", "block"), (64, 10, 1), {"batch": "1"})


def test_the_latency_is_the_sum_by_hand() -> None:
    found = table()
    # 0.5 fixed, 1 other, 2 and 4 for the layers, 5 at the end of the depthwise layer's steps
    assert found.total_ms == pytest.approx(12.5)
    shares = torch.tensor([0.6, 0.3, 0.5])
    depthwise = 2 + (0.3 - 0.25) / 0.25  # a fifth of the way from the second to the third step
    by_hand = 0.5 + (0.75 * 0.6 + 0.25) + 2 * 0.6 + 0.5 * 4 * 0.6 * 0.3 + depthwise
    assert float(found.latency_ms(shares)) == pytest.approx(by_hand)
    assert float(found.fraction(shares)) == pytest.approx(by_hand / 12.5)


def test_the_derivative_is_that_of_the_interpolation() -> None:
    shares = torch.tensor([0.6, 0.3, 0.5], requires_grad=True)
    table().latency_ms(shares).backward()
    assert shares.grad is not None
    expected = torch.tensor([0.75 + 2 + 0.5 * 4 * 0.3, 0.5 * 4 * 0.6 + 1 / 0.25, 4 * 0.6 * 0.3])
    assert torch.allclose(shares.grad, expected)


def test_closed_vectors_leave_what_nothing_saves_and_a_finite_derivative() -> None:
    shares = torch.zeros(3, requires_grad=True)
    latency = table().latency_ms(shares)
    latency.backward()
    assert float(latency.detach()) == pytest.approx(0.5 + 0.25)
    assert shares.grad is not None
    assert bool(shares.grad.isfinite().all())


def test_what_is_kept_of_a_wide_vector_counts_in_blocks_of_eight() -> None:
    found = table()
    # 33 of 64 units take as long as 40; 3 of 10 are counted as they are
    kept = found.kept_fraction(torch.tensor([33 / 64, 0.3, 1.0]))
    assert torch.equal(kept, found.fraction(torch.tensor([40 / 64, 0.3, 1.0])))
    assert torch.equal(found.kept_fraction(torch.ones(3)), found.fraction(torch.ones(3)))


def test_a_file_gives_the_same_table_back(tmp_path: Path) -> None:
    written = table()
    written.save(tmp_path / "t.json")
    read = LatencyTable.load(tmp_path / "t.json")
    shares = torch.tensor([0.6, 0.3, 0.5])
    assert torch.equal(read.latency_ms(shares), written.latency_ms(shares))
    assert str(read) == str(written)
    assert read.places == ("a", "b", "block")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_the_table_prints_the_times_at_half_and_full_width() -> None:
    assert str(table()).splitlines() == [
        "layer           half       full  (ms)",
        "first         0.5000     2.0000",
        "second        1.0000     4.0000",
        "depthwise     3.0000     5.0000",
        "other                    1.0000",
        "fixed         0.5000     0.5000",
        "total                   12.5000",
        "batch 1",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 9}, "it is of format 9, expected 1"),
        ({"layers": 3}, "'int' object is not iterable"),
        ({"activations": [{"base": 1.0, "gates": [7]}]}, "a term names a gate vector beyond the 3 there are"),
    ],
)
def test_a_file_that_is_no_table_is_refused(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelFileError) as caught:
        LatencyTable.load(path)
    assert str(caught.value) == f"{path}: is no latency table ({reason}). Measure it again."


def test_times_that_are_no_grid_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table().save(path)
    content = json.loads(path.read_text())
    content["layers"][0]["times_ms"] = [[1.0, -2.0]]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match=r"the times of first are no 6 by 6 numbers"):
        LatencyTable.load(path)
    with pytest.raises(ModelFileError) as caught:
        LatencyTable.load(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}: no such file; expected a latency table (measure_latency)."
