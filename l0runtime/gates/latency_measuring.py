"""How long do a network's layers take on this machine, at the widths that its gates may leave?

The layers are measured one by one in onnxruntime, at a grid of widths, and kept in the user's table of layer times
(l0runtime.measurement.layer_times), so the next run finds most of them there. The whole network is exported and
measured too, with the batch asked for and with twice as many examples: what its layers do not explain of it is the
rest of the table, and of that what does not grow with the batch is fixed.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates.attached import gates_in
from l0runtime.gates.attaching import detach, find
from l0runtime.gates.cost import CostModel
from l0runtime.gates.couplings import argument, operator_name, shape_of
from l0runtime.gates.latency_table import BLOCK, BLOCKED_FROM, GRID, LatencyTable, TimedLayer
from l0runtime.gates.places import LayerWidths
from l0runtime.measurement.layer_times import LayerKind, LayerTimes, Widths
from l0runtime.session import load

_RUNS = (5, 200)  # of the whole network, at least and at most, and no longer than so many seconds
_SECONDS = 2.0


def measure_latency(
    model: nn.Module,
    example_inputs: Sequence[Any] | Tensor | None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    batch: int = 1,
    device: str = "cpu",
    threads: int = 1,
    cache: Path | None = None,
) -> LatencyTable:
    """Measure what the layers of a model with attached gates cost here, for `TargetCost(model, 0.5, steps, cost=...)`.

    Takes about a second for each different layer, less where the user's table of layer times knows it.

    Args:
        model: with gates attached by a trace; it stays as it is.
        example_inputs: positional inputs, batch first, of at least 2 examples; one tensor stands for itself.
        example_kwargs: keyword inputs.
        batch: number of examples that the latency is meant for.
        device, threads: where it is meant for, as in `l0runtime.load`.
        cache: folder of the table of layer times, None for the user's cache folder.
    Raises:
        NoGateError: the model has no attached gates.
        OptionError: batch < 1, or fewer than 2 examples.
        UnsupportedModelError: the gates were attached by patterns, or the model cannot be traced or exported.
        DeviceError: the device is absent.
    """
    gates = gates_in(model)
    if gates is None:
        raise NoGateError(f"measure_latency: {type(model).__name__} has no attached gates; call attach first.")
    if not gates.costs:
        raise UnsupportedModelError(
            "measure_latency: these gates were attached by layer patterns, so nothing is known of what they save; "
            "attach with a GateSpec and example inputs."
        )
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs or ())
    kwargs = dict(example_kwargs or {})
    sizes = [len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()]
    examples = sizes[0] if sizes else 0
    if batch < 1 or examples < 2:
        raise OptionError(
            f"measure_latency: expected batch >= 1 and at least 2 examples; found {batch} and {examples}."
        )
    bare = copy.deepcopy(model).cpu()
    args = tuple(_on_cpu(value) for value in args)
    kwargs = {name: _on_cpu(value) for name, value in kwargs.items()}
    detach(bare, fold=False)
    found = find(bare, args, kwargs)
    names = [place.name for place in found.places]
    missing = [place.name for place in gates.places if place.name not in names]
    if missing:
        raise UnsupportedModelError(
            f"measure_latency: the example inputs give no place {missing[0]}; use the inputs that were given to attach."
        )
    chosen = [names.index(place.name) for place in gates.places]
    times = LayerTimes(device, threads, cache)
    layers = tuple(_timed(layer, times, batch, examples, chosen) for layer in found.layers)
    twice = [layer_kind(layer, 2 * batch, examples) for layer in found.layers]
    explained_ms = [
        sum(layer.times_ms[-1][-1] for layer in layers),
        sum(times.times_ms(kind, [widths])[0] for kind, widths in twice),
    ]
    times.save()
    whole_ms = _whole(bare.eval(), args, kwargs, examples, (batch, 2 * batch), device, threads)
    rest_ms, rest_of_twice_ms = (max(w - e, 0.0) for w, e in zip(whole_ms, explained_ms, strict=True))
    growing_ms = min(max(rest_of_twice_ms - rest_ms, 0.0), rest_ms)
    scale = min(1.0, whole_ms[0] / explained_ms[0])  # a lone layer may take longer than among the others
    return LatencyTable(
        tuple(replace(layer, times_ms=_scaled(layer.times_ms, scale)) for layer in layers),
        found.activations.select(chosen),
        other_ms=growing_ms,
        fixed_ms=rest_ms - growing_ms,
        places=tuple(place.name for place in gates.places),
        sizes=tuple(place.size for place in gates.places),
        conditions={**times.conditions, "batch": str(batch)},
    )


def _timed(layer: LayerWidths, times: LayerTimes, batch: int, examples: int, chosen: Sequence[int]) -> TimedLayer:
    kind, (inside, outside) = layer_kind(layer, batch, examples)
    inputs = None if layer.inputs is None else layer.inputs.select(chosen)
    outputs, present = layer.outputs.select(chosen), layer.present.select(chosen)
    if kind.groups == 0:
        column = np.array(times.times_ms(kind, [(w, w) for w in _widths(outside, outputs)]))
        table = np.tile(_on_grid(column, _widths(outside, outputs), outside), (len(GRID), 1))
    else:
        rows, columns = _widths(inside, inputs), _widths(outside, outputs)
        pairs: list[Widths] = [(row, column) for row in rows for column in columns]
        measured = np.array(times.times_ms(kind, pairs)).reshape(len(rows), len(columns))
        over_outputs = np.stack([_on_grid(row, columns, outside) for row in measured])
        table = np.stack([_on_grid(column, rows, inside) for column in over_outputs.T], 1)
    return TimedLayer(
        layer.name, kind.key((inside, outside)), inputs, outputs, present, tuple(map(tuple, table.tolist()))
    )


def _scaled(times_ms: tuple[tuple[float, ...], ...], scale: float) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(scale * value for value in row) for row in times_ms)


def _widths(size: int, share: CostModel | None) -> list[int]:
    """The widths to measure: those of the grid where gates act on a side, else the full one alone."""
    if share is None or not any(term.gates for term in share.terms):
        return [size]
    step = BLOCK if size >= BLOCKED_FROM else 1  # at multiples of it no kernel has a ragged edge
    return sorted({min(size, max(1, step * round(size * part / step))) for part in GRID[1:-1]} | {size})


def _on_grid(times_ms: np.ndarray[Any, Any], widths: Sequence[int], size: int) -> np.ndarray[Any, Any]:
    """Times over GRID from those at a few widths; a width of 0 takes no time, one that nothing gates is always full.

    A layer may be padded up with dead units, so it never takes longer than a wider one.
    """
    if len(widths) == 1:
        return np.full(len(GRID), float(times_ms[0]))
    falling = np.minimum.accumulate(times_ms[::-1])[::-1]
    result: np.ndarray[Any, Any] = np.interp(np.array(GRID) * size, [0, *widths], [0.0, *falling])
    return result


def layer_kind(layer: LayerWidths, batch: int, examples: int) -> tuple[LayerKind, Widths]:
    """The layer as the table of layer times knows it, and its full widths (inputs, outputs).

    Args:
        layer: of a graph that was traced with `examples` examples.
        batch: number of examples to measure with.
    """
    node = layer.node
    x = shape_of(node.args[1 if operator_name(node) in ("addmm", "baddbmm") else 0])  # type: ignore[arg-type]
    if operator_name(node) in ("conv1d", "conv2d", "conv3d", "convolution"):
        return _convolution_kind(layer, batch * x[0] // examples)
    rows = math.prod(x[:-1]) * batch // examples
    return LayerKind("MatMul", max(1, rows)), (x[-1], shape_of(node)[-1])


def _convolution_kind(layer: LayerWidths, batch: int) -> tuple[LayerKind, Widths]:
    node = layer.node
    x, weight = shape_of(node.args[0]), shape_of(node.args[1])  # type: ignore[arg-type]
    kernel, rank = tuple(weight[2:]), len(weight) - 2
    strides, dilations = (
        _each(argument(node, place, name, 1), rank) for place, name in ((3, "stride"), (5, "dilation"))
    )
    padding = argument(node, 4, "padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = (*(t // 2 for t in total), *(t - t // 2 for t in total))
    else:
        once = _each(0 if padding == "valid" else padding, rank)
        pads = (*once, *once)
    groups = int(argument(node, 8 if operator_name(node) == "convolution" else 6, "groups", 1))
    if layer.inputs is None:
        groups = 0
    attributes = (("dilations", dilations), ("pads", pads), ("strides", strides))
    return LayerKind("Conv", max(1, batch), tuple(x[2:]), kernel, attributes, groups), (x[1], weight[0])


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return tuple(int(v) for v in values) * (rank if len(values) == 1 else 1)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _resized(value: Any, examples: int, batch: int) -> Any:
    """An input with `batch` examples, the given ones in turns."""
    if isinstance(value, Tensor) and value.dim() and len(value) == examples:
        return value[torch.arange(batch) % examples]
    return value


def _whole(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    examples: int,
    batches: Sequence[int],
    device: str,
    threads: int,
) -> list[float]:
    """Latency of the exported network with each number of examples, in ms; the best of runs in turns."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for batch in batches:
            inputs = tuple(_resized(value, examples, batch) for value in args)
            named = {name: _resized(value, examples, batch) for name, value in kwargs.items()}
            session = load(_exported(model, inputs, named, Path(folder) / f"{batch}.onnx"), device, threads=threads)
            tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
            feed = {spec.name: value.numpy() for spec, value in zip(session.inputs, tensors, strict=True)}
            runs.append(session.bind(feed).run)
        best = [math.inf] * len(runs)
        begin = time.perf_counter()
        for turn in range(_RUNS[1]):
            if turn >= _RUNS[0] and time.perf_counter() - begin > _SECONDS:
                break
            for position, run in enumerate(runs):
                run()  # bring its data back into the cache
                started = time.perf_counter()
                run()
                best[position] = min(best[position], (time.perf_counter() - started) * 1e3)
        return best


def _exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> Path:
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
            assert program is not None
            program.save(str(path))
        except Exception as error:  # the model's own code runs, which may fail in any way
            lines = str(error).strip().splitlines() or [""]
            raise UnsupportedModelError(
                f"measure_latency: torch.onnx cannot export {type(model).__name__} ({lines[0][:200]})."
            ) from error
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter away: it concerns its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
