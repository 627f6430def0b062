"""`l0runtime export` writes what Triton and Kubernetes read, or nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from l0runtime.cli import main

MODEL = '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Neg (x) }'
MIXING = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,2] x) => (float[N,2] y) { t = ReduceSum <keepdims = 1> (x) y = Add (x, t) }"""


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(MODEL), "my_model.onnx")
    onnx.save(onnx.parser.parse_model(MIXING), "mixing.onnx")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["export", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_triton_repository_is_written() -> None:
    assert run("triton", "my_model.onnx", "--repo", "repo", "--device", "cpu", "--max-batch", "4") == (
        0,
        "repo/my_model: version 1, backend onnxruntime, max_batch_size 4\n",
        "",
    )
    assert Path("repo/my_model/1/model.onnx").is_file()
    code, _, text = run("triton", "my_model.onnx", "--repo", "repo", "--device", "cpu")
    assert code == 2
    assert text == "error: repo/my_model/1: exists already. Choose another version, or remove it.\n"


def test_that_requests_are_not_merged_is_said() -> None:
    code, found, text = run("triton", "mixing.onnx", "--repo", "repo", "--device", "cpu", "--backend", "python")
    assert (code, found) == (0, "repo/mixing: version 1, backend python, max_batch_size 0\n")
    assert text.startswith("requests are not merged: ")


def test_tensors_that_triton_widens_are_named() -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] a, float[N,1] b) => (float[N] y) { y = Neg (a) }'
    onnx.save(onnx.parser.parse_model(text), "flat.onnx")
    code, _, text = run("triton", "flat.onnx", "--repo", "repo", "--device", "cpu")
    assert (code, text) == (0, "Triton's clients send and get a, y with the shape [N, 1]\n")


def test_an_inference_service_is_written() -> None:
    assert run("kserve", "my_model.onnx", "--storage-uri", "pvc://models/repo", "--output", "service.yaml") == (
        0,
        "service.yaml: InferenceService my-model; start it with: kubectl apply -f service.yaml\n",
        "",
    )
    assert "storageUri: 'pvc://models/repo'" in Path("service.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("my_model.onnx", "--storage-uri", "x", "--output", "s.yaml"),
            2,
            "error: storage URI 'x': expected one that ",
        ),
        (("no.onnx", "--storage-uri", "s3://a/b", "--output", "s.yaml"), 1, "error: no.onnx: no such file."),
        (
            ("my_model.onnx", "--storage-uri", "s3://a/b", "--output", "no/s.yaml"),
            2,
            "error: --output no/s.yaml: cannot",
        ),
    ],
)
def test_nothing_is_written_on_an_error(arguments: tuple[str, ...], code: int, message: str) -> None:
    found, _, text = run("kserve", *arguments)
    assert found == code
    assert text.startswith(message)
    assert not list(Path().glob("*.yaml"))
