"""Exported programs are read as data: whatever torch.export.load would execute is refused first."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters import convert
from converters.formats.torch_export import SOURCE, _is_arithmetic, _is_plain_tree
from converters.sources import Candidate, SourceOptions, find_source
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError
from l0runtime.gates import GatedLinear

WAY_OUT = (
    "; loading it could run code from the file. "
    "Where it was made, export the model to ONNX (torch.onnx.export) and convert that."
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), GatedLinear(6, 3)).eval()
    with torch.no_grad():
        net[2].gate.log_alpha.copy_(torch.tensor([-9.0, 9, -9, 0, 9, 9]))
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    exported = torch.export.export(net, (torch.randn(2, 5),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(exported, path)
    return path


def edit(program: Path, tmp_path: Path, member: str, change: Callable[[bytes], bytes], name: str | None = None) -> Path:
    """The archive with one member changed, and renamed where a name is given."""
    path = tmp_path / "edited.pt2"
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith(member):
                info.filename = name or info.filename
                data = change(data)
            target.writestr(info.filename, data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        SOURCE.load(Candidate(path), SourceOptions())
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_program_is_converted_with_its_dynamic_batch(program: Path, tmp_path: Path) -> None:
    report = convert(program, tmp_path / "out.onnx")
    assert report.format == "pt2"
    assert report.verification.torch is not None
    assert [change.after and change.after.inputs for change in report.widths] == [5, 4]
    assert {name.split("x")[0] for name in report.verification.batches} == {
        "input 2",
        "input 32",
        "input 1",
        "input 18",
    }


def test_it_is_told_from_other_zip_archives(program: Path, tmp_path: Path) -> None:
    assert find_source(Candidate(program)).name == "pt2"
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    assert not SOURCE.recognise(Candidate(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch mark')",
        "Symbol('__import__(1)')",
        "Add('s0')",
        "s0.__class__",
        "[s0 for s0 in s1]",
        "lambda: s0",
        "Max(s0, evaluate='x')",
        "open",
        "'s0'",
        "s0 if s1 else s2",
        "(" * 200,
        "",
        3,
    ],
)
def test_a_size_that_is_no_arithmetic_is_refused(code: object) -> None:
    assert not _is_arithmetic(code)


@pytest.mark.parametrize(
    "text",
    [
        "s77",
        "2*s0 + 3",
        "Symbol('s31', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s31', integer=True))",
        "FloorDiv(s0 - 4, 2)",
        "Float('1.5e-3', precision=53)",
        "Eq(Mod(s0, 8), 0)",
    ],
)
def test_sizes_as_torch_writes_them_are_accepted(text: str) -> None:
    assert _is_arithmetic(text)


def test_an_expression_with_code_is_refused_before_torch_evaluates_it(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def inject(data: bytes) -> bytes:
        graph = json.loads(data)

        def replace(value: Any) -> None:
            if isinstance(value, dict):
                if "expr_str" in value:
                    value["expr_str"] = f"__import__('os').system('touch {mark}')"
                for child in value.values():
                    replace(child)
            elif isinstance(value, list):
                for child in value:
                    replace(child)

        replace(graph)
        return json.dumps(graph).encode()

    message = refusal(edit(program, tmp_path, "models/model.json", inject))
    shown = repr(f"__import__('os').system('touch {mark}')"[:100])
    assert message == f"the size {shown} is no arithmetic{WAY_OUT}"
    assert not mark.exists()


def test_a_function_that_is_no_operator_is_refused(program: Path, tmp_path: Path) -> None:
    def call_hub(data: bytes) -> bytes:
        return data.replace(b"torch.ops.aten.relu.default", b"torch.hub.load")

    message = refusal(edit(program, tmp_path, "models/model.json", call_hub))
    assert message == f"it calls 'torch.hub.load', which is no operator of ATen{WAY_OUT}"


def test_pickled_weights_are_refused(program: Path, tmp_path: Path) -> None:
    def pickle_them(data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    message = refusal(edit(program, tmp_path, "weights_config.json", pickle_them))
    assert message.endswith(f" is pickled{WAY_OUT}")


def test_the_old_form_of_pickled_weights_is_refused(program: Path, tmp_path: Path) -> None:
    path = edit(program, tmp_path, "weights/weight_0", lambda data: data, "net/data/weights/model.pt")
    assert refusal(path) == f"data/weights/model.pt is pickled{WAY_OUT}"


def test_example_inputs_that_are_not_tensors_are_refused(program: Path, tmp_path: Path) -> None:
    def pickle_module(_: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(nn.Linear(1, 1), buffer)
        return buffer.getvalue()

    message = refusal(edit(program, tmp_path, "sample_inputs/model.pt", pickle_module))
    assert message == f"its example inputs are not tensors alone{WAY_OUT}"


def test_compiled_code_and_compression_are_refused(program: Path, tmp_path: Path) -> None:
    path = edit(program, tmp_path, "byteorder", lambda data: data, "net/data/aotinductor/model/code.so")
    assert refusal(path) == f"it holds compiled code (data/aotinductor/model/code.so){WAY_OUT}"
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    assert " is compressed, as torch.export.save never does" in refusal(path)


def test_containers_of_other_classes_are_refused() -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    for kind, accepted in (("builtins.tuple", True), ("collections.defaultdict", False)):
        tree = [1, {"type": kind, "context": "null", "children_spec": [leaf]}]
        assert _is_plain_tree(json.dumps(tree)) is accepted
    assert not _is_plain_tree("no json")


def test_truncated_and_damaged_archives_give_a_clear_error(program: Path, tmp_path: Path) -> None:
    path = edit(program, tmp_path, "models/model.json", lambda data: data[: len(data) // 2])
    with pytest.raises(ModelFileError, match="cannot be read as an exported program"):
        SOURCE.load(Candidate(path), SourceOptions())


def test_nan_in_a_weight_is_named(program: Path, tmp_path: Path) -> None:
    def poison(data: bytes) -> bytes:
        return np.full(len(data) // 4, np.nan, np.float32).tobytes()

    path = edit(program, tmp_path, "weights/weight_0", poison)
    with pytest.raises(UnsupportedModelError, match=r"0\.weight: 30 of 30 values are NaN; expected finite numbers"):
        SOURCE.load(Candidate(path), SourceOptions())


def test_options_without_meaning_are_refused(program: Path) -> None:
    with pytest.raises(
        OptionError, match=r"an exported program holds its own graph and inputs; leave out the model\.$"
    ):
        SOURCE.load(Candidate(program), SourceOptions(model="a:b"))
