"""Do the paper benchmark's readers and counters read and count right?"""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "paper"


def load_script(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"benchmarks_paper_{name}", FOLDER / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


cost, idx = load_script("cost"), load_script("idx")


def test_the_dense_networks_have_their_known_cost() -> None:
    # 266,610 and 431,080 parameters are the literature's; 2 FLOPs for each of 266,200 and 2,293,000 multiply-adds
    assert cost.cost_of("lenet-300-100", (784, 300, 100)) == (266_610, 532_400)
    assert cost.cost_of("lenet-5", (20, 50, 800, 500)) == (431_080, 4_586_000)


def test_a_pruned_lenet_5_is_counted_by_its_kept_units() -> None:
    # 9-18-65-25, by hand: 9 * 26, 18 * (225 + 1), 25 * 66, 10 * 26
    parameters, flops = cost.cost_of("lenet-5", (9, 18, 65, 25))
    assert parameters == 234 + 4068 + 1650 + 260
    assert flops == 2 * (576 * 9 * 25 + 64 * 18 * 225 + 65 * 25 + 250)


def write_idx(path: Path, array: np.ndarray, *, zipped: bool = False) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read(tmp_path: Path, zipped: bool) -> None:
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a", array, zipped=zipped)
    np.testing.assert_array_equal(idx.read_idx(tmp_path / "a"), array)


def test_wrong_idx_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello")
    with pytest.raises(SystemExit, match=r"a: not an IDX file of unsigned bytes \(it starts with 68656c6c\)\.$"):
        idx.read_idx(path)
    write_idx(path, np.zeros((2, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        SystemExit, match=r"a: 5 bytes of data, but its header announces \(2, 3\); download it again\.$"
    ):
        idx.read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz is there"):
        idx.load_mnist(tmp_path)


def test_the_table_sets_each_run_beside_the_papers_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # as when it runs as a script
    report = load_script("report")
    speeds = [
        {"batch": batch, "speed_up": {"estimate": 3.0 + batch, "low": 2.5, "high": 40.125}} for batch in report.BATCHES
    ]
    machine = {"processor": "A chip", "usable_cores": 2, "python": "3.11", "versions": {"torch": "2.13", "onnx": "1.2"}}
    result = {
        "training": {
            "network": "lenet-5",
            "lambdas_times_n": [10.0, 0.5, 0.1, 10.0],
            "kept_units": [9, 18, 65, 25],
            "parameters_dense": 431080,
            "flops_dense": 4586000,
        },
        "onnx_test_error_percent": {"gated": 1.0, "compact": 0.986},
        "conversion": {"after": {"parameters": 6212, "macs": 500000}},
        "speed": {"results": speeds, "machine": machine},
    }
    lines = report.table_of([result]).splitlines()
    assert lines[2] == (
        "| lenet-5 | 10, 0.5, 0.1, 10 | 9-18-65-25 | 9-18-65-25 | 0.99 | 1.0 | 6,212 of 431,080 "
        "| 1,000,000 of 4,586,000 | 4.00 [2.50, 40.12] | 35.00 [2.50, 40.12] |"
    )
    assert lines[6].startswith("Measured on A chip, 2 cores, Python 3.11, torch 2.13, onnx 1.2.")
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
