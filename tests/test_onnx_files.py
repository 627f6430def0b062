"""A file that is no readable ONNX model is refused with what it is and what to do."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from l0runtime.errors import ModelFileError
from l0runtime.onnx_files import check_model_path, external_files, read_model

RELU = '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Relu (x) }'


def test_a_readable_model_comes_back_equal(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(RELU)
    onnx.save(model, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx") == model


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty. Expected an ONNX model; write or download it again."),
        (
            b"PK\x03\x04rest",
            "not an ONNX model but a zip archive, such as a torch checkpoint or an .npz file. "
            "`l0runtime convert` turns a gated checkpoint into an ONNX model.",
        ),
        (
            b"\x08\0\0\0\0\0\0\0{}      ",
            "not an ONNX model but a safetensors file. "
            "`l0runtime convert` turns a gated checkpoint into an ONNX model.",
        ),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        check_model_path(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        read_model(tmp_path / "none.onnx")
    assert str(caught.value) == f"{tmp_path / 'none.onnx'}: no such file. Give the path of an .onnx file."
    with pytest.raises(ModelFileError) as caught:
        read_model(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a directory. Give the path of an .onnx file."


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "m.onnx"
    content = onnx.parser.parse_model(RELU).SerializeToString()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelFileError, match="The file is truncated or of another format; write or download it again"):
        read_model(path)


def test_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("hello world\n")
    with pytest.raises(ModelFileError, match="truncated or of another format"):
        read_model(path)


def test_a_model_from_a_newer_onnx_says_upgrade(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(RELU)
    model.ir_version = onnx.IR_VERSION + 1
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError) as caught:
        read_model(tmp_path / "m.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'm.onnx'}: has ONNX IR version {onnx.IR_VERSION + 1}; the installed onnx {onnx.__version__} "
        f"reads up to {onnx.IR_VERSION}. Upgrade onnx."
    )


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2] x) => (float[N,2] y) <float[2] b={1,2}> { y = Add (x, b) }"""
    )
    model.graph.initializer[0].raw_data = onnx.numpy_helper.to_array(model.graph.initializer[0]).tobytes()
    del model.graph.initializer[0].float_data[:]
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    assert read_model(tmp_path / "m.onnx", weights=False).graph.name == "g"
    with pytest.raises(ModelFileError, match="its external data cannot be read"):
        read_model(tmp_path / "m.onnx")


def test_data_files_are_named_also_where_a_branch_alone_needs_them(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[2] x) => (float[2] y) <float[2] w={1,2}> {
        y = If (c) <
            then_branch = t () => (float[2] a) <float[2] v={3,4}> { a = Add (x, v) },
            else_branch = e () => (float[2] b) { b = Add (x, w) }
        >
    }"""
    model = onnx.parser.parse_model(text)
    branch = model.graph.node[0].attribute[0].g.initializer[0]
    for tensor, location in ((model.graph.initializer[0], "w.data"), (branch, "v.data")):
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == ["v.data", "w.data"]
    branch.external_data[0].value = "../secret"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelFileError, match=r"its weights lie in '\.\./secret', outside its folder\. Write it again\."
    ):
        external_files(path)
