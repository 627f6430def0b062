"""Models whose weights lie in several files beside them, at offsets: converted exactly, and counted whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.large_model.build import build
from converters import convert
from converters.formats.onnx_file import SOURCE
from converters.sources import Candidate, SourceOptions
from l0runtime.errors import ModelFileError
from l0runtime.onnx_files import stored_bytes

BLOCKS, WIDTH, HIDDEN = 3, 12, 16


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    folder = tmp_path / "gated"
    folder.mkdir()
    return build(folder, blocks=BLOCKS, width=WIDTH, hidden=HIDDEN)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def test_weights_in_two_files_with_offsets_are_cut_and_embedded(gated: Path, tmp_path: Path) -> None:
    offsets = {
        (entry.key, entry.value)
        for tensor in onnx.load(gated, load_external_data=False).graph.initializer
        for entry in tensor.external_data
    }
    assert {("location", "weights-0.bin"), ("location", "weights-1.bin"), ("offset", "4096")} <= offsets
    compact = tmp_path / "compact.onnx"
    report = convert(gated, compact)
    assert report.after.parameters == BLOCKS * (2 * WIDTH * (HIDDEN // 2) + HIDDEN // 2)
    x = np.random.default_rng(0).standard_normal((5, WIDTH), np.float32)
    expected = run(gated, x)
    # float32 sums of at most 16 terms through 6 layers
    assert np.abs(run(compact, x) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert not onnx.load(compact, load_external_data=False).graph.initializer[0].external_data


def test_the_report_counts_the_data_files_of_the_gated_model(gated: Path, tmp_path: Path) -> None:
    report = convert(gated, tmp_path / "compact.onnx")
    on_disk = sum(path.stat().st_size for path in gated.parent.iterdir())
    assert report.before.file_bytes == stored_bytes(gated) == on_disk
    assert report.after.file_bytes == (tmp_path / "compact.onnx").stat().st_size - len(_metadata(tmp_path))


def _metadata(folder: Path) -> bytes:
    """What the report itself adds to the file once everything has been counted."""
    model = onnx.load(folder / "compact.onnx")
    added = onnx.ModelProto()
    added.metadata_props.extend(model.metadata_props)
    return added.SerializeToString()


def test_a_compact_model_that_protobuf_cannot_hold_gets_a_data_file(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converters.output_files._LARGEST_EMBEDDED_BYTES", 1000)
    compact = tmp_path / "compact.onnx"
    convert(gated, compact)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compact.onnx", "compact.onnx.data", "gated"]
    x = np.random.default_rng(0).standard_normal((5, WIDTH), np.float32)
    np.testing.assert_allclose(run(compact, x), run(gated, x), rtol=0, atol=1e-5)


def test_weights_of_a_branch_that_lie_elsewhere_on_the_disk_are_not_read(tmp_path: Path) -> None:
    stolen = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    stolen.data_location = onnx.TensorProto.EXTERNAL
    stolen.external_data.add(key="location", value="../secret")
    info = onnx.helper.make_tensor_value_info
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["b"])], "branch", [], [info("b", 1, [2])], [stolen]
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "outer",
        [info("x", 1, [2]), info("c", onnx.TensorProto.BOOL, [])],
        [info("y", 1, [2])],
    )
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelFileError, match=r"the values of w are said to lie in '../secret', outside"):
        SOURCE.load(Candidate(path), SourceOptions())
