"""The names that users rely on, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import l0runtime
from l0runtime.cli import COMMANDS


def test_the_public_names_are_these() -> None:
    assert l0runtime.__all__ == ["Session", "bench", "doctor", "load"]
    assert all(hasattr(l0runtime, name) for name in l0runtime.__all__)
    assert set(l0runtime.__all__) <= set(dir(l0runtime))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"^module 'l0runtime' has no attribute 'lod'; it has Session, bench"):
        _ = l0runtime.lod


def test_the_commands_are_these() -> None:
    assert list(COMMANDS) == ["demo", "convert", "inspect", "run", "bench", "serve", "export", "doctor"]


@pytest.mark.parametrize(
    "code",
    [
        "import l0runtime",
        "import converters",
        "from click.testing import CliRunner; from l0runtime.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0",
    ],
)
def test_importing_and_asking_for_help_load_no_heavy_package(code: str) -> None:
    heavy = "{'torch', 'onnxruntime', 'onnx', 'onnx_ir', 'sklearn', 'sympy'}"
    check = f"{code}; import sys; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", check], check=True)
