"""How does an exported program (`.pt2`, torch.export.save) become a gated model?

torch.export.load was not made for files from strangers: it unpickles, evaluates symbolic expressions as Python, and
looks functions up by name. So the archive is read first as what it is, JSON and raw tensors, and refused unless every
tensor is stored raw, every expression is arithmetic, and every operator is one of ATen's.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from converters.live_module import check_tensors
from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import L0RuntimeError, ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_OPERATOR = re.compile(
    r"torch\.ops\.aten\.\w+(\.\w+)?"
    r"|_?operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\.sym_(int|float|not|max|min|ite|sqrt)"
)
# what torch writes symbolic sizes with: sympy's own, and torch.utils._sympy.functions
_SYMPY = """
    Abs Add And CeilDiv CeilToInt CleanDiv
    Eq Equality Float FloatPow FloatTrueDiv FloorDiv
    FloorToInt Ge GreaterThan Gt IntTrueDiv Integer
    Le LessThan Lt Max Min Mod
    ModularIndexing Mul Ne Not Or Pow
    PowByNatural PythonMod Rational RoundToInt StrictGreaterThan StrictLessThan
    Symbol ToFloat TruncToFloat TruncToInt Unequality Where
"""
_FUNCTIONS = frozenset(_SYMPY.split())
_SYMBOL = re.compile(r"[suz]f?\d+")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
_ARITHMETIC = (
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
)
# containers that inputs and outputs may be made of, as torch.utils._pytree names them; null is a leaf
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_RAW = re.compile(r"(weight|tensor)_\d+")
_DATA = ("data/weights/", "data/constants/")


class ExportedProgramFile:
    """A program with its weights, example inputs and dynamic axes."""

    name = "pt2"
    description = "program saved by torch.export.save (.pt2)"

    def recognise(self, file: Candidate) -> bool:
        return any(name.split("/", 1)[-1] == "archive_format" for name in file.members)

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        if options.model is not None or options.example_inputs is not None:
            given = "model" if options.model is not None else "example inputs"
            raise OptionError(
                f"{file.path}: an exported program holds its own graph and inputs; leave out the {given}."
            )
        if options.extra:
            raise OptionError(f"{file.path}: format {self.name} has no options; found {', '.join(options.extra)}.")
        try:
            _check_archive(file)
            program = _load(file)
        except L0RuntimeError:
            raise
        except Exception as error:  # a damaged file fails in many ways inside torch
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ModelFileError(
                f"{file.path}: cannot be read as an exported program ({reason.rstrip('.')}). "
                "The file is truncated, damaged or from another version of torch; export it again."
            ) from error
        check_tensors(dict(program.named_parameters()), dict(program.named_buffers()))
        return GatedModel(format=self.name, program=program)


SOURCE = ExportedProgramFile()


def _load(file: Candidate) -> ExportedProgram:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(file.path)


def _check_archive(file: Candidate) -> None:
    """Refuse whatever torch.export.load would execute."""
    import torch

    with zipfile.ZipFile(file.path) as archive:
        members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
        for name, info in members.items():
            if info.compress_type != zipfile.ZIP_STORED:
                raise _refused(file, f"member {name} is compressed, as torch.export.save never does")
            if name.startswith(("data/aotinductor/", "data/executorch/")):
                raise _refused(file, f"it holds compiled code ({name})")
        for name, info in members.items():
            if name.startswith("models/"):
                _check_graph(file, json.loads(archive.read(info)))
            elif name.endswith("_config.json") and name.startswith(_DATA):
                _check_payload(file, json.loads(archive.read(info)))
            elif name.startswith(_DATA) and not _RAW.fullmatch(name.rsplit("/", 1)[-1]):
                raise _refused(file, f"{name} is pickled")
            elif name.startswith("data/sample_inputs/"):
                try:
                    torch.load(io.BytesIO(archive.read(info)), weights_only=True)
                except Exception as error:  # torch.export.load would go on to unpickle it without restraint
                    raise _refused(file, "its example inputs are not tensors alone") from error


def _check_payload(file: Candidate, config: Any) -> None:
    for name, entry in config["config"].items():
        if entry.get("use_pickle") is not False or not _RAW.fullmatch(entry["path_name"]):
            raise _refused(file, f"{name} is pickled")


def _check_graph(file: Candidate, graph: Any) -> None:
    for key, value in _walk(graph):
        if key in ("target", "as_operator") and isinstance(value, str) and not _OPERATOR.fullmatch(value):
            raise _refused(file, f"it calls {value[:100]!r}, which is no operator of ATen")
        if key == "expr_str" and not _is_arithmetic(value):
            raise _refused(file, f"the size {str(value)[:100]!r} is no arithmetic")
        if key == "range_constraints" and not all(map(_is_arithmetic, value)):
            raise _refused(file, "a size with a range is no arithmetic")
        if key in ("in_spec", "out_spec") and not _is_plain_tree(value):
            raise _refused(file, "its inputs or outputs are not made of tuples, lists and dicts")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, at any depth."""
    stack = [value]
    while stack:
        current = stack.pop()
        if isinstance(current, dict):
            yield from current.items()
            stack.extend(current.values())
        elif isinstance(current, list):
            stack.extend(current)


def _is_arithmetic(text: object) -> bool:
    """Numbers, size symbols, operators and the functions of symbolic sizes; nothing that sympy's eval could misuse."""
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_safe(tree.body)


def _is_safe(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Name):
        return _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS:
            return False
        arguments: list[ast.expr] = node.args
        text = arguments[0].value if arguments and isinstance(arguments[0], ast.Constant) else None
        if isinstance(text, str):  # sympy would evaluate a string anywhere else
            pattern = {"Symbol": _SYMBOL, "Float": _NUMBER}.get(node.func.id)
            if pattern is None or not pattern.fullmatch(text):
                return False
            arguments = arguments[1:]
        # keywords are assumptions, positive=True, or a precision
        return all(map(_is_safe, arguments)) and all(
            isinstance(k.value, ast.Constant) and _is_safe(k.value) for k in node.keywords
        )
    return isinstance(node, _ARITHMETIC) and all(map(_is_safe, ast.iter_child_nodes(node)))


def _is_plain_tree(text: object) -> bool:
    """Whether a serialised tree of containers names only Python's own."""
    if text in ("", None):
        return True
    try:
        _, tree = json.loads(str(text))
    except (ValueError, TypeError):
        return False
    stack = [tree]
    while stack:
        node = stack.pop()
        if not isinstance(node, dict) or node.get("type") not in _CONTAINERS or "__enum__" in str(node.get("context")):
            return False
        stack.extend(node.get("children_spec", []))
    return True


def _refused(file: Candidate, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{file.path}: {reason}; loading it could run code from the file. "
        "Where it was made, export the model to ONNX (torch.onnx.export) and convert that."
    )
