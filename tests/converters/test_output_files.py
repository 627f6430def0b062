"""Nothing is written until all is well, and what is there before stays until then."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from small_models import make_mlp

from converters import output_files
from converters.output_files import append_metadata, publish, save_model, staging_folder
from l0runtime.errors import ModelFileError, OptionError


def test_the_staging_folder_is_gone_after_a_failure(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with pytest.raises(ZeroDivisionError), staging_folder(output) as folder:
        (folder / "half").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_publishing_puts_the_model_and_its_data_in_place(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_text("old")
    with staging_folder(output) as folder:
        (folder / "out.onnx").write_text("new")
        (folder / "out.onnx.data").write_text("data")
        assert output.read_text() == "old"
        publish(folder, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert output.read_text() == "new"


def test_a_report_that_cannot_be_written_leaves_the_model_unwritten(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    with staging_folder(output) as folder:
        (folder / "out.onnx").write_text("new")
        (folder / "report.json").write_text("{}")
        with pytest.raises(ModelFileError, match=r"cannot be written \(No such file or directory\)\.$"):
            publish(folder, output, tmp_path / "missing" / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    output = tmp_path / "missing" / "out.onnx"
    with pytest.raises(ModelFileError) as caught, staging_folder(output):
        pass
    assert str(caught.value) == f"{output}: the folder {output.parent} does not exist. Create it first."


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught, staging_folder(tmp_path):
        pass
    assert str(caught.value) == f"{tmp_path}: is a directory; expected the path of the .onnx file to write."


def test_the_source_is_never_overwritten(mlp: Path) -> None:
    with pytest.raises(OptionError) as caught, staging_folder(mlp, str(mlp)):
        pass
    assert str(caught.value) == f"{mlp}: is the source itself; expected another path for the compact model."


def test_metadata_is_appended_without_touching_the_verified_bytes(tmp_path: Path) -> None:
    path = save_model(ir.from_proto(make_mlp()), tmp_path / "model.onnx")
    before = path.read_bytes()
    append_metadata(path, {"l0runtime.a": "1", "l0runtime.b": "ü"})
    assert path.read_bytes().startswith(before)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"l0runtime.a": "1", "l0runtime.b": "ü"}
    assert [node.name for node in model.graph.node] == ["fc1", "mul", "relu", "fc2"]
    assert dict(ir.load(path).metadata_props)["l0runtime.b"] == "ü"


def test_metadata_joins_what_the_file_has_already(tmp_path: Path) -> None:
    model = make_mlp()
    model.metadata_props.add(key="author", value="someone")
    path = save_model(ir.from_proto(model), tmp_path / "model.onnx")
    append_metadata(path, {"l0runtime.a": "1"})
    assert [entry.key for entry in onnx.load(path).metadata_props] == ["author", "l0runtime.a"]


def test_weights_beyond_what_protobuf_holds_go_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "_LARGEST_EMBEDDED_BYTES", 100)
    model = make_mlp((1.0,) * 80)
    path = save_model(ir.from_proto(model), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    loaded = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in onnx.load(path).graph.initializer}
    assert loaded == {t.name: onnx.numpy_helper.to_array(t).tolist() for t in model.graph.initializer}


def test_a_source_with_external_data_is_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_files, "_LARGEST_EMBEDDED_BYTES", 100)
    (tmp_path / "source").mkdir()
    source = save_model(ir.from_proto(make_mlp((1.0,) * 80)), tmp_path / "source" / "model.onnx")
    monkeypatch.undo()
    copy = save_model(ir.load(source), tmp_path / "copy.onnx")
    (tmp_path / "source" / "model.onnx.data").unlink()
    onnx.checker.check_model(onnx.load(copy), full_check=True)
