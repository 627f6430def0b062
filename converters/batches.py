"""On which inputs are two models compared?

The example inputs where there are any, then three batches of random ones of different sizes, the second of them with
other image sizes or lengths where the model's inputs allow it and the model runs on them. Small models get more
examples: a wrong weight shows only where the unit behind it is active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0runtime.errors import InputError, UnsupportedModelError
from l0runtime.measurement.cost import count_cost
from l0runtime.onnx_files import read_model
from l0runtime.sample_inputs import InputSpec, input_specs, integer_bounds, sample_inputs

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_SMALLEST_BATCH, _LARGEST_BATCH = 2, 32
_MACS_PER_BATCH = 1_000_000_000  # about a second on one core
# sizes tried for a dynamic axis that no example fixes, the first one that the model runs on is taken
_USUAL_SIZES = (64, 32, 224, 28, 16, 8, 256, 1)
# how a dynamic size is changed for the second batch: an odd step tells most, a multiple of 32 suits most strides
_SIZE_STEPS = (7, 32)


@dataclass(frozen=True)
class Batch:
    """Inputs by name, and what the gated model gives for them; None where onnxruntime has no kernel for the model."""

    name: str
    feed: Mapping[str, Array]
    outputs: Sequence[Array] | None


class Runner:
    """Runs an ONNX file in onnxruntime on the CPU, with results that do not depend on the run."""

    def __init__(self, path: str | Path) -> None:
        """A model that onnxruntime refuses is kept as the reason, and given as the answer to every run."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # what fails is raised, the rest does not concern a user
        options.use_deterministic_compute = True
        self.failure: str | None = None
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            self.failure = _first_line(error)

    def run(self, feed: Mapping[str, Array]) -> list[Array] | str:
        """All outputs in order, or the reason why there are none."""
        if self.failure is not None:
            return self.failure
        try:
            outputs: list[Array] = self._session.run(None, dict(feed))
        except Exception as error:
            return _first_line(error)
        return outputs


def make_batches(
    path: str | Path,
    inputs: Sequence[Mapping[str, Array]] | None = None,
    *,
    example: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> list[Batch]:
    """Inputs for a model and its outputs on them; see `verify` for the arguments.

    Raises:
        InputError: given inputs do not fit the model.
        UnsupportedModelError: the model does not run.
    """
    runner = Runner(path)
    if inputs is not None:
        return [_given(runner, feed) for feed in inputs]
    proto = read_model(path, weights=False)
    specs = input_specs(proto)
    bounds = _bounds_of(example, specs, integer_bounds(proto))

    def sample(sizes: Mapping[str, int], batch: int) -> dict[str, Array]:
        shapes = {spec.name: _shape(spec, sizes, batch) for spec in specs}
        return sample_inputs(proto, shapes=shapes, bounds=bounds, seed=seed + batch)

    batches = [_given(runner, example)] if example is not None else []
    sizes = _base_sizes(specs, example)
    if sizes is None:
        sizes = _find_sizes(runner, specs, sample)
    most = _affordable_batch(path, {spec.name: _shape(spec, sizes, 1) for spec in specs})
    for position, batch in enumerate((most, 1, most // 2 + 2)):  # three different sizes, whatever `most` is
        feed = sample(sizes, batch)
        outputs = runner.run(feed) if runner.failure is None else None
        if isinstance(outputs, str):
            raise UnsupportedModelError(f"{path}: the gated model does not run on {_name(feed)} ({outputs}).")
        if position == 1:
            other = _other_sizes(runner, sizes, sample)
            feed, outputs = other if other is not None else (feed, outputs)
        batches.append(Batch(_name(feed), feed, outputs))
    return batches


def shapes_of_one(path: str | Path, feed: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Input shapes of one example: those of a feed, with 1 for a batch axis that may vary."""
    return {
        spec.name: tuple(
            1 if axis == 0 and not isinstance(dim, int) else int(feed[spec.name].shape[axis])
            for axis, dim in enumerate(spec.shape)
        )
        for spec in input_specs(read_model(path, weights=False))
    }


def _affordable_batch(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    macs = count_cost(path, shapes=shapes).macs
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, _MACS_PER_BATCH // max(macs, 1)))


def _given(runner: Runner, feed: Mapping[str, Array]) -> Batch:
    outputs = runner.run(feed) if runner.failure is None else None
    if isinstance(outputs, str):
        raise InputError(f"the gated model does not run on the inputs given, {_name(feed)} ({outputs}).")
    return Batch(_name(feed), feed, outputs)


def _axis_key(spec: InputSpec, axis: int) -> str:
    """What a dynamic axis is known by: its symbol, or its place where it has none."""
    dim = spec.shape[axis]
    return dim if isinstance(dim, str) else f"{spec.name}[{axis}]"


def _dynamic_axes(specs: Sequence[InputSpec]) -> dict[str, tuple[InputSpec, int]]:
    """Dynamic axes other than the batch; an axis whose symbol is also some input's first axis is the batch."""
    firsts = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    return {
        _axis_key(spec, axis): (spec, axis)
        for spec in specs
        for axis, dim in enumerate(spec.shape)
        if axis > 0 and not isinstance(dim, int) and dim not in firsts
    }


def _shape(spec: InputSpec, sizes: Mapping[str, int], batch: int) -> tuple[int, ...]:
    return tuple(
        dim if isinstance(dim, int) else sizes.get(_axis_key(spec, axis), batch) for axis, dim in enumerate(spec.shape)
    )


def _base_sizes(specs: Sequence[InputSpec], example: Mapping[str, Array] | None) -> dict[str, int] | None:
    axes = _dynamic_axes(specs)
    if not axes:
        return {}
    if example is None:
        return None
    return {key: int(example[spec.name].shape[axis]) for key, (spec, axis) in axes.items()}


def _find_sizes(runner: Runner, specs: Sequence[InputSpec], sample: Any) -> dict[str, int]:
    """The first usual size, the same for all dynamic axes, on which the model runs."""
    reason = ""
    for size in _USUAL_SIZES:
        sizes = dict.fromkeys(_dynamic_axes(specs), size)
        outputs = runner.run(sample(sizes, 1))
        if not isinstance(outputs, str):
            return sizes
        reason = outputs
    raise UnsupportedModelError(
        f"the gated model runs with none of the usual sizes ({', '.join(map(str, _USUAL_SIZES))}) for its dynamic axes "
        f"{', '.join(_dynamic_axes(specs))} ({reason}). Give inputs to verify on."
    )


def _other_sizes(runner: Runner, sizes: Mapping[str, int], sample: Any) -> tuple[dict[str, Array], list[Array]] | None:
    """One example with other sizes than the base, None if there are none or the model refuses them."""
    for step in _SIZE_STEPS if sizes and runner.failure is None else ():
        # different steps for different axes: a model that swaps height and width must not pass
        feed: dict[str, Array] = sample({key: size + step * (1 + n) for n, (key, size) in enumerate(sizes.items())}, 1)
        outputs = runner.run(feed)
        if not isinstance(outputs, str):
            return feed, outputs
    return None


def _bounds_of(
    example: Mapping[str, Array] | None, specs: Sequence[InputSpec], known: Mapping[str, int]
) -> dict[str, int]:
    """Integers that index no known table stay within the range of the example's."""
    if example is None:
        return {}
    return {
        spec.name: int(example[spec.name].max()) + 1
        for spec in specs
        if spec.dtype.kind in "iu" and spec.name not in known and example[spec.name].size
    }


def _name(feed: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, array.shape)) or 'scalar'}" for name, array in feed.items())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
