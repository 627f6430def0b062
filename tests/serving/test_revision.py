"""A file is served only if it runs and gives what it declares; requests share runs only if rows are independent."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_server import options, write_model

from l0runtime.errors import ModelFileError, UnsupportedModelError
from l0runtime.serving.revision import load_revision, same_signature
from l0runtime.serving.snapshot import FileState


@pytest.mark.parametrize(
    ("text", "merged", "verified"),
    [
        ("linear", True, "ran on 4 random rows"),
        ("mixing", False, "ran on 4 random rows"),
        ("g (float[1,3] x) => (float[1,3] y) { y = Neg (x) }", False, "ran on 1 random rows"),
        ("g (float[N,L,3] x) => (float[N,L,3] y) { y = Neg (x) }", True, "ran on 4 random rows"),
        # only lengths that are a multiple of 64 fit
        (
            "g (float[N,L] x) => (float[N,R,64] y) <int64[3] s={0,-1,64}> { y = Reshape (x, s) }",
            True,
            "ran on 4 random rows",
        ),
        # a length of 5 is needed, which nobody can guess
        (
            "g (float[N,L] x) => (float[N,M] y) <int64[2] s={-1,5}, float[5,1] w={1,1,1,1,1}> { y = MatMul (x, w) }",
            False,
            "loaded only: no sample input fits its dynamic dimensions",
        ),
    ],
)
def test_what_was_tried_is_on_record(tmp_path: Path, text: str, merged: bool, verified: str) -> None:
    revision = load_revision(write_model(tmp_path / "m.onnx", text), options())
    assert (revision.not_merged is None) == merged
    assert revision.verified == verified
    revision.session.close()


def test_an_output_that_is_not_as_declared_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", "g (float[N,2] x) => (int64[2,999] y) { y = NonZero (x) }")
    message = (
        r"output 'y' came out as int64 \[2, 8\], the file declares y: int64 \[2, 999\]\. Export the model again\.$"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        load_revision(path, options())


def test_names_of_dynamic_dimensions_make_no_difference_to_clients(tmp_path: Path) -> None:
    texts = [
        "g (float[N,3] x) => (float[N,3] y) { y = Neg (x) }",
        "g (float[B,3] x) => (float[B,3] y) { y = Abs (x) }",
        "g (float[N,4] x) => (float[N,4] y) { y = Neg (x) }",
    ]
    one, same, wide = (
        load_revision(write_model(tmp_path / f"{number}.onnx", text), options()).signature
        for number, text in enumerate(texts)
    )
    assert same_signature(one, same) is None
    assert same_signature(one, wide) == "its inputs are x: float32 [N, 4], so far x: float32 [N, 3]"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.onnx", "linear")
    states = iter([FileState(((1, 2, 3),)), FileState(((1, 2, 4),))])
    monkeypatch.setattr(FileState, "of", classmethod(lambda cls, path, data: next(states)))
    with pytest.raises(ModelFileError, match="was replaced while it was read"):
        load_revision(path, options())
