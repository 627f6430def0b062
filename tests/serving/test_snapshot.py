"""A model of several files answers as it was when it was loaded, whatever happens to them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from running_server import RunningServer, options, write_model

from l0runtime.errors import ModelFileError
from l0runtime.serving.revision import load_revision
from l0runtime.serving.snapshot import FileState, own_copy

TABLE = "g (int64[N] i) => (float[N,1000] y) <float[2,1] t={7,8}> { y = Gather (t, i) }"


def write(folder: Path, value: float, *, data: str = "m.data") -> Path:
    """A table of 100 rows whose values lie beside the model, large enough for onnxruntime to map them."""
    model = onnx.load(write_model(folder / "m.onnx", TABLE))
    table = onnx.numpy_helper.from_array(np.full((100, 1000), value, np.float32), "t")
    model.graph.initializer[0].CopyFrom(table)
    (folder / data).unlink(missing_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location=data, size_threshold=0)
    return folder / "m.onnx"


def asked(path: Path) -> Callable[[], set[float]]:
    session = load_revision(path, options()).session
    return lambda: set(session.run({"i": np.array([3, 99])})["y"].reshape(-1).tolist())


def test_weights_that_are_written_over_or_cut_short_change_no_answer(tmp_path: Path) -> None:
    values = asked(write(tmp_path, 5))
    with (tmp_path / "m.data").open("r+b") as file:
        file.write(np.full(100_000, 6, np.float32).tobytes())
    assert values() == {5}
    (tmp_path / "m.data").write_bytes(b"")  # a page that is mapped and gone would end the process
    assert values() == {5}


def test_no_copy_is_left_and_none_is_made_of_a_single_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "room"))
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "folder", 5)
    with own_copy(path, ["m.data"]) as own:
        assert own != path
        assert [file.read_bytes() for file in (own, own.parent / "m.data")] == [
            file.read_bytes() for file in (path, path.parent / "m.data")
        ]
    assert not list((tmp_path / "room").iterdir())
    single = write_model(tmp_path / "single.onnx", "linear")
    with own_copy(single, []) as own:
        assert own == single


def test_weights_that_are_missing_or_find_no_room_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 5)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", full)
        with pytest.raises(
            ModelFileError, match=r"cannot be copied to .* \(No space left on device\)\. Set TMPDIR to "
        ):
            load_revision(path, options())
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelFileError, match=r"its weights lie in 'm\.data', which is not beside it\. Put it there\."):
        load_revision(path, options())


def test_an_error_on_loading_a_copy_names_the_model_itself(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    (tmp_path / "m.data").write_bytes(b"short")
    with pytest.raises(ModelFileError) as caught:
        load_revision(path, options())
    assert str(caught.value).startswith(f"{path}: ")


def test_a_state_tells_a_replacement_of_equal_size_and_time(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    before = FileState.of(path, ["m.data"])
    assert before == FileState.of(path, ["m.data"])
    for name in ("m.onnx", "m.data"):
        other = tmp_path / "other"
        other.write_bytes((tmp_path / name).read_bytes())
        found = (tmp_path / name).stat()
        os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
        other.replace(tmp_path / name)
        after = FileState.of(path, ["m.data"])
        assert after not in (None, before)
        before = after
    assert FileState.of(path, ["absent"]) is None
    assert FileState.of(tmp_path / "absent") is None


def test_weights_that_are_replaced_alone_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    server = RunningServer({"m": path}, options(reload_s=0.05))
    body = {"inputs": [{"name": "i", "shape": [1], "datatype": "INT64", "data": [3]}]}

    def answered() -> tuple[str, set[float]]:
        found = server.infer("m", body).json
        return found["model_version"], set(found["outputs"][0]["data"])

    def reloaded(count: int) -> bool:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if sum(event["event"] == "model_reloaded" for event in server.events()) >= count:
                return True
            time.sleep(0.02)
        return False

    assert answered() == ("1", {5})
    (tmp_path / "m.data").write_bytes(np.full(100_000, 6, np.float32).tobytes())
    assert reloaded(1)
    assert answered() == ("2", {6})
    # another data file, which comes after the model that names it
    (tmp_path / "next").mkdir()
    write(tmp_path / "next", 7, data="n.data")
    (tmp_path / "next" / "m.onnx").replace(path)
    time.sleep(0.4)
    assert answered() == ("2", {6})
    (tmp_path / "next" / "n.data").replace(tmp_path / "n.data")
    assert reloaded(2)
    assert answered() == ("3", {7})
    server.stop()
