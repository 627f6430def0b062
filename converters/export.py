"""How does a torch module become an ONNX file in which every zero is still exactly zero?

torch.onnx.export (dynamo) in eval mode: it may fold a BatchNorm into the convolution before it, which multiplies
zeros and keeps them, and evaluates gates to constants. The batch axis is dynamic, and the sizes of images (or the
length of sequences) where the module itself accepts another size: it is asked, by running it.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters.dynamic_axes import (
    first_line,
    name_dynamic_axes,
    resized,
    size_axes,
    size_steps,
    tensors_in,
    why_not,
)
from converters.module_runner import ModuleRunner
from converters.sources import GatedModel
from l0runtime.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir
    import torch

    Array = np.ndarray[Any, Any]

_EXAMPLE_BATCH = 2  # torch.export takes a size of 1 for a constant
_OTHER_BATCH = 3  # a batch size that no example has by chance


@dataclass(frozen=True)
class Exported:
    """A gated model as ONNX.

    Args:
        model: the graph; its initializers share memory with the module's parameters.
        example_inputs: the inputs it was traced with, by ONNX input name.
        runner: runs the torch module itself on arrays by ONNX input name.
        notes: what the user should know, e.g. why an axis is static.
    """

    model: ir.Model
    example_inputs: dict[str, Array]
    runner: ModuleRunner
    notes: tuple[str, ...]


def export(
    gated: GatedModel,
    *,
    dynamic_shapes: Any = None,
    opset: int | None = None,
) -> Exported:
    """Export the torch module or program of a gated model.

    Args:
        gated: with a module or a program.
        dynamic_shapes: as for torch.export.export; None lets the batch vary, and the other sizes where the module
            allows it; {} fixes every size.
        opset: ONNX opset version, None for the exporter's default.
    Raises:
        InputError: the module does not run on its example inputs.
        UnsupportedModelError: torch.export cannot trace it, or torch.onnx knows no operator for a part of it.
    """
    if gated.program is not None:
        return _export_program(gated, opset)
    assert gated.module is not None
    args, kwargs = gated.example_inputs, dict(gated.example_kwargs)
    _run(gated.module, args, kwargs)
    if dynamic_shapes is not None:
        exported = _export_once(gated, args, kwargs, dynamic_shapes, opset)
        return _exported(exported, gated.module, args, kwargs)
    return _export_as_dynamic_as_possible(gated, args, kwargs, opset)


def _export_as_dynamic_as_possible(
    gated: GatedModel, args: tuple[Any, ...], kwargs: dict[str, Any], opset: int | None
) -> Exported:
    """Batch and sizes dynamic; failing that the batch alone; failing that all static, with the reason noted."""
    assert gated.module is not None
    reason = why_not(gated.module, *resized(args, kwargs, {"batch": _OTHER_BATCH}))
    if reason is not None:
        return _export_static(gated, args, kwargs, opset, reason)
    batched, batched_kwargs = resized(args, kwargs, {"batch": _EXAMPLE_BATCH})
    note = None
    sizes = size_axes(args, kwargs)
    if sizes and why_not(gated.module, *resized(args, kwargs, {"batch": _OTHER_BATCH, **size_steps(sizes)})) is None:
        try:
            model = _export_once(gated, batched, batched_kwargs, {"batch", *sizes}, opset)
        except UnsupportedModelError:
            note = f"{_listed(sizes)} fixed at the example's: torch.onnx.export fails when they vary"
        else:
            # An image size that the graph reads at run time (adaptive pooling to 7x7 becomes 30 Gathers) costs more
            # than a fixed one and hides widths from the engine; a sequence length is always read.
            if "length" in sizes or not any(node.op_type == "Shape" for node in model.graph):
                return _exported(model, gated.module, batched, batched_kwargs, f"{_listed(sizes)} may vary")
            note = (
                f"{_listed(sizes)} fixed at the example's: the graph would have to compute with them at run time; "
                "give dynamic_shapes to let them vary all the same"
            )
    try:
        model = _export_once(gated, batched, batched_kwargs, {"batch"}, opset)
    except UnsupportedModelError as error:
        return _export_static(gated, args, kwargs, opset, str(error))
    return _exported(model, gated.module, batched, batched_kwargs, note)


def _export_static(
    gated: GatedModel, args: tuple[Any, ...], kwargs: dict[str, Any], opset: int | None, reason: str
) -> Exported:
    model = _export_once(gated, args, kwargs, set(), opset)
    note = f"the batch size is fixed at the example's: with another, {reason}"
    assert gated.module is not None
    return _exported(model, gated.module, args, kwargs, note)


def _export_once(
    gated: GatedModel, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Any, opset: int | None
) -> ir.Model:
    """`dynamic` is the set of axis names that may vary, or the caller's own dynamic_shapes."""
    import torch

    assert gated.module is not None
    if isinstance(dynamic, set):
        dynamic = name_dynamic_axes(gated.module, args, kwargs, dynamic) if dynamic else None
    name = type(gated.module).__name__
    with _quiet(), _translated(name), torch.no_grad():
        program = torch.onnx.export(
            gated.module,
            args,
            kwargs=kwargs,
            dynamo=True,
            dynamic_shapes=dynamic or None,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    return program.model


def export_unoptimised(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ir.Model:
    """The graph of a module in eval mode as it is: parameters under their own names, nothing fused, every size fixed.

    Raises:
        InputError, UnsupportedModelError: as for `export`.
    """
    import torch

    _run(module, args, kwargs)
    with _quiet(), _translated(type(module).__name__), torch.no_grad():
        program = torch.onnx.export(module, args, kwargs=dict(kwargs), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    _cast_by_name(program.model)
    return program.model


def _cast_by_name(model: ir.Model) -> None:
    """CastLike reads its second operand for nothing but its type, which is known here; a Cast names it."""
    import onnx_ir as ir

    for node in list(model.graph):
        like = node.inputs[1] if node.op_type == "CastLike" else None
        if like is None or like.dtype is None:
            continue
        cast = ir.node("Cast", [node.inputs[0]], {"to": int(like.dtype)}, name=node.name)
        result, output = cast.outputs[0], node.outputs[0]
        result.name, result.shape, result.type = output.name, output.shape, output.type
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.insert_before(node, cast)
        model.graph.remove(node)


def _export_program(gated: GatedModel, opset: int | None) -> Exported:
    import torch

    program = gated.program
    assert program is not None
    if program.example_inputs is None:
        raise UnsupportedModelError(f"{gated.format}: the program holds no example inputs; export it again with them.")
    args, kwargs = program.example_inputs
    with _quiet(), _translated("the exported program"), torch.no_grad():
        exported = torch.onnx.export(program, args, kwargs=kwargs, dynamo=True, opset_version=opset, verbose=False)
    assert exported is not None
    return _exported(exported.model, program.module(), args, kwargs)


# --- plumbing -------------------------------------------------------------------------------------------------------


def _exported(
    model: ir.Model, module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any], note: str | None = None
) -> Exported:
    runner = ModuleRunner(module, args, kwargs, [value.name or "" for value in model.graph.inputs])
    return Exported(model, runner.example_feed(), runner, (note,) if note else ())


def _run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    import torch

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors_in(args, kwargs))
        raise InputError(
            f"{type(module).__name__}: does not run on its example inputs {shapes} "
            f"({type(error).__name__}: {first_line(error)}). Give inputs of the shape and dtype that it expects."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings and log lines away: they concern its internals, not the user's model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # a failing export prints the traced graph; what matters of it goes into the error
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn any failure of the exporter into one sentence that names its root cause."""
    try:
        yield
    except Exception as error:  # the exporter runs the user's forward, which may fail in any way
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UnsupportedModelError(
            f"{name}: torch.onnx.export failed ({type(cause).__name__}: {first_line(cause)}). "
            "Make the model's forward exportable (torch.export), or convert an ONNX file of it."
        ) from error


def _listed(axes: Sequence[str]) -> str:
    return " and ".join(axes)
