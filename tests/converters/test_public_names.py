"""The package's names are what its docstring says, and importing it loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import converters


def test_public_names_are_these_and_all_resolve() -> None:
    assert converters.__all__ == [
        "CompactedModule",
        "GatedModel",
        "Inspection",
        "Report",
        "Shrinkage",
        "Shrinker",
        "Verification",
        "compact_module",
        "convert",
        "inspect",
        "shrink",
        "verify",
    ]
    for name in converters.__all__:
        assert getattr(converters, name).__name__ == name


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = converters.prune
    assert str(caught.value) == (
        "module 'converters' has no attribute 'prune'; it has "
        "CompactedModule, GatedModel, Inspection, Report, Shrinkage, Shrinker, Verification, compact_module, convert, "
        "inspect, shrink, verify"
    )


def test_importing_the_package_loads_neither_torch_nor_onnx_nor_onnxruntime() -> None:
    code = "import sys, converters; print([m for m in ('torch', 'onnx', 'onnx_ir', 'onnxruntime') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_help_of_every_command_loads_neither_torch_nor_onnxruntime() -> None:
    for command in ("convert", "inspect", "demo"):
        code = (
            "import sys\nfrom l0runtime.cli import main\n"
            f"try: main(['{command}', '--help'])\nexcept SystemExit: pass\n"
            "print([m for m in ('torch', 'onnx_ir', 'onnxruntime') if m in sys.modules])"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout.endswith("[]\n")
