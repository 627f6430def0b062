"""Imports point one way: l0runtime.cli to converters to l0runtime.gates; in the engine, from stages to relations."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, without those that only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield node.module


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def offenders(folder: str, forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        if not str(path.relative_to(ROOT)).startswith(allowed or ("-",))
        for name in imported(path)
        if any(name == root or name.startswith(f"{root}.") for root in forbidden)
    ]


def test_only_the_command_line_imports_the_converters() -> None:
    assert offenders("l0runtime", ("converters",), allowed=("l0runtime/cli/",)) == []


def test_the_converters_never_import_the_command_line() -> None:
    assert offenders("converters", ("l0runtime.cli",)) == []


def test_products_never_import_tests_or_benchmarks() -> None:
    for folder in ("l0runtime", "converters"):
        assert offenders(folder, ("tests", "benchmarks")) == []


def test_relations_and_axes_know_no_rule_and_no_stage() -> None:
    engine = "converters.compaction"
    for name, known in {
        "axes.py": {"axes"},
        **{
            f"relations/{kind}.py": {"axes", "quantised_weights", "relations.base"}
            for kind in ("base", "places", "sums", "ties")
        },
        "quantised_weights.py": {"axes", "names"},
        "dimensions.py": {"dimensions"},
    }.items():
        path = ROOT / "converters" / "compaction" / name
        inner = {module.removeprefix(f"{engine}.") for module in imported(path) if module.startswith(engine)}
        assert inner <= known, name


def test_the_oracle_never_imports_the_engine() -> None:
    assert offenders("tests/oracle", ("converters",)) == []


def test_a_forbidden_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l0runtime").mkdir()
    (tmp_path / "l0runtime" / "session.py").write_text("def f():\n    from converters.pipeline import convert\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert offenders("l0runtime", ("converters",)) == ["l0runtime/session.py imports converters.pipeline"]
