"""What does a model compute, as a list of ATen operators with the parameters that they read?"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from l0runtime.errors import UnsupportedModelError


@dataclass(frozen=True)
class Trace:
    """The graph of one forward pass in eval mode.

    Args:
        graph: ATen operators, as torch.export records them.
        tensors: placeholder name -> qualified name of the parameter or buffer that it is.
        batch: length of axis 0 of the first input tensor.
        tied: qualified name of a parameter that several modules share -> all of its names.
        tables: names of parameters that an nn.Embedding holds.
    """

    graph: Graph
    tensors: Mapping[str, str]
    batch: int
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tables: frozenset[str] = frozenset()


def trace(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Trace:
    """Record a forward pass with torch.export; the model's modes and parameters stay as they are.

    Args:
        model: any module that torch.export can trace.
        args, kwargs: example inputs, batch first.
    Raises:
        UnsupportedModelError: torch.export cannot trace it.
    """
    kwargs = dict(kwargs or {})
    with _evaluating(model), _quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, tuple(args), kwargs, strict=False)
        except Exception as error:  # the model's own code runs, which may fail in any way
            lines = str(error).strip().splitlines() or [""]
            raise UnsupportedModelError(
                f"{type(model).__name__}: torch.export cannot trace it ({type(error).__name__}: {lines[0][:200]}). "
                "Name the layers to gate by pattern instead ({'layer*.conv1': 'output'}), which needs no trace."
            ) from error
    _erase_what_nobody_reads(program.graph)
    signature = program.graph_signature
    tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors.update(signature.inputs_to_lifted_tensor_constants)
    sizes = [value.shape[0] for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor) and value.dim()]
    tables = frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return Trace(program.graph, tensors, sizes[0] if sizes else 1, _tied(model), tables)


def _tied(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in names.values() if len(group) > 1 for name in group}


def _erase_what_nobody_reads(graph: Graph) -> None:
    """Take out checks of a tensor's dtype and attention weights that nobody asked for: they are no readers."""
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert_tensor_metadata" in str(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """eval() without attention's fused path, which is one operator that hides its projections."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's own warnings away: they concern its internals, not the user's model."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
