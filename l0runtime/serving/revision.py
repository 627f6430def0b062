"""Is a model file fit to be served?

A revision is one state of a model's files, loaded and tried: it ran on samples, and it is known whether requests may
share a run (only if every row's answer is the same alone and in company).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l0runtime.errors import InputError, L0RuntimeError, ModelFileError, UnsupportedModelError
from l0runtime.onnx_files import external_files
from l0runtime.sample_inputs import sample_inputs
from l0runtime.serving.datatypes import check_datatypes
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.request import Signature
from l0runtime.serving.snapshot import FileState, own_copy
from l0runtime.session import Session, load
from l0runtime.session.arrays import Array
from l0runtime.session.batches import Feed, RowGuard
from l0runtime.session.specs import TensorSpec

# sizes tried for dynamic dimensions other than the batch: one of them mostly suits
_DYNAMIC_SIZES = (8, 16, 32, 64, 1, 224)
_TRIED_ROWS = 4


@dataclass(frozen=True)
class Revision:
    """One loaded and verified state of a model file.

    Attributes:
        session: the model.
        signature: its tensors.
        data: names of the files beside it that hold its weights.
        state: of all these files, before they were read.
        not_merged: why requests do not share runs; None if they do.
        verified: what was run before the first request.
    """

    session: Session
    signature: Signature
    data: tuple[str, ...]
    state: FileState
    not_merged: str | None
    verified: str


def load_revision(path: Path, options: ServeOptions) -> Revision:
    """Load a model and try it.

    Raises:
        ModelFileError: the file is missing, invalid, or was replaced while it was read.
        DeviceError: the device is absent.
        UnsupportedModelError: it holds tensors that cannot be served, or fails on every sample.
    """
    data = tuple(external_files(path))
    state = FileState.of(path, data)
    with own_copy(path, data) as own:
        session = _session(path, own, options)
    check_datatypes(str(path), (*session.inputs, *session.outputs))
    samples = _sample(path, session)
    if state is None or FileState.of(path, data) != state:
        raise ModelFileError(f"{path}: was replaced while it was read; it is read again when it has come to rest.")
    signature = Signature(session.inputs, session.outputs)
    if samples is None:
        # Nothing is known of how its rows behave, so that nothing is merged.
        unknown = "no sample input could be made for its dynamic dimensions, so that nothing is known of its rows"
        return Revision(
            session, signature, data, state, unknown, "loaded only: no sample input fits its dynamic dimensions"
        )
    reason = _why_not_merged(session, samples)
    rows = len(next(iter(samples.values()), ()))
    return Revision(session, signature, data, state, reason, f"ran on {rows} random rows")


def _session(path: Path, own: Path, options: ServeOptions) -> Session:
    """The session of a copy, with errors that name the model itself."""
    try:
        return load(
            own, device=options.device, threads=options.threads, spin=False, allow_cpu_nodes=options.allow_cpu_nodes
        )
    except L0RuntimeError as error:
        if own == path:
            raise
        raise type(error)(str(error).replace(str(own), str(path))) from error


def same_signature(before: Signature, after: Signature) -> str | None:
    """What differs for clients between two signatures; None if nothing does."""
    for kind, old, new in (("inputs", before.inputs, after.inputs), ("outputs", before.outputs, after.outputs)):
        if _without_symbols(old) != _without_symbols(new):
            return f"its {kind} are {'; '.join(map(str, new))}, so far {'; '.join(map(str, old))}"
    return None


def _without_symbols(specs: Sequence[object]) -> list[object]:
    """Specs in which every dynamic dimension looks alike: clients see -1."""
    return [
        dataclasses.replace(spec, shape=tuple(dim if isinstance(dim, int) else None for dim in spec.shape))  # type: ignore[type-var,attr-defined]
        for spec in specs
    ]


def _sample(path: Path, session: Session) -> Feed | None:
    """Random inputs on which the model runs and gives what it declares; None if no size of its dimensions was found.

    Raises:
        UnsupportedModelError: all dimensions are known, and yet it fails.
    """
    free = {dim for spec in session.inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    free -= {spec.shape[0] for spec in session.inputs if spec.shape}
    nameless = any(dim is None for spec in session.inputs for dim in spec.shape[1:])
    if nameless:
        return None
    for size in _DYNAMIC_SIZES if free else (1,):
        try:
            feed = sample_inputs(path, batch=_TRIED_ROWS, dims=dict.fromkeys(free, size))
            _check_outputs(path, session, session.run(feed))
            return feed
        except (InputError, UnsupportedModelError):
            if not free:
                raise
    return None


def _check_outputs(path: Path, session: Session, results: dict[str, Array]) -> None:
    """Clients are told the declared tensors, so that these must be the real ones."""
    for spec in session.outputs:
        found = results[spec.name]
        if not isinstance(found, np.ndarray) or found.dtype != spec.numpy_dtype or not _fits(found.shape, spec):
            shown = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
            raise UnsupportedModelError(
                f"{path}: output '{spec.name}' came out as {shown}, the file declares {spec}. Export the model again."
            )


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == dim for size, dim in zip(shape, spec.shape, strict=True) if isinstance(dim, int)
    )


def _why_not_merged(session: Session, samples: Feed) -> str | None:
    try:
        guard = RowGuard(session.inputs, session.outputs, session.metadata)
        guard.check(session.run_arrays, samples)
    except (UnsupportedModelError, InputError) as error:
        return str(error)
    return None
