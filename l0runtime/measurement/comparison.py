"""Is one model faster than another, by how much and how surely?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from l0runtime.errors import InputError, OptionError, UnsupportedModelError
from l0runtime.machine import describe_machine, load_average
from l0runtime.measurement.agreement import Agreement, check_same_inputs, compare_outputs
from l0runtime.measurement.cost import count_cost, weight_types
from l0runtime.measurement.footprint import measure_footprint
from l0runtime.measurement.paired import BASELINE, CANDIDATE
from l0runtime.measurement.profiling import ProfileComparison, compare_profiles
from l0runtime.measurement.report import BatchResult, BenchReport, Latency, ModelFacts
from l0runtime.measurement.speed import DEFAULT_SECONDS, compare_speed
from l0runtime.onnx_files import read_model, stored_bytes
from l0runtime.sample_inputs import InputSpec, input_specs, resolve_shapes, sample_inputs
from l0runtime.session import Session, load
from l0runtime.session.devices import parse_device

if TYPE_CHECKING:
    import onnx

# outputs are compared on this many random inputs before anything is timed
_DRAWS_COMPARED = 3


def bench(
    compact: str | Path,
    against: str | Path,
    *,
    batch: int | Sequence[int] = 1,
    device: str = "cuda",
    margin: float = 0.01,
    threads: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    bounds: Mapping[str, int] | None = None,
    budget_seconds: float = DEFAULT_SECONDS,
    footprint: bool = True,
    profile: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Compare a model's speed with another's that computes the same.

    Both run on the same provider, threads and inputs, with inputs and outputs bound beforehand, so that copies are
    not timed. Outputs are compared first. See `l0runtime.measurement.paired` for how the times are taken and
    `l0runtime.measurement.statistics` for how the verdict follows.

    Args:
        compact: the candidate, which may be faster.
        against: the baseline it was made from.
        batch: sizes of the dynamic first dimension.
        device, threads: as in `l0runtime.load`. One thread by default: the verdict is then safe on a busy machine.
        margin: differences of up to this count as none, such as 0.02 for 2 %.
        shapes, dims, bounds: of the inputs, as in `l0runtime.sample_inputs`.
        budget_seconds: about how long to time each batch size.
        footprint: also measure cold start and peak memory, in a fresh process for each model.
        profile: also compare node by node, at the first batch size.
        seed: of inputs and run order.
        progress: called with a line about each step.
    Raises:
        VerificationError: the two models do not compute the same.
        InputError: they take different inputs, or the shapes do not fit.
        UnsupportedModelError: they hold weights of different precision.
        ModelFileError, DeviceError, OptionError: as `l0runtime.load`.
    """
    say = progress or (lambda line: None)
    batches = [batch] if isinstance(batch, int) else list(batch)
    if not batches or any(size < 1 for size in batches):
        raise OptionError(f"batch {batches}: expected one or more sizes of at least 1.")
    if not 0 <= margin < 1:
        raise OptionError(f"margin {margin}: expected a fraction from 0 to below 1, such as 0.02 for 2 %.")
    if budget_seconds <= 0:
        raise OptionError(f"budget {budget_seconds} s: expected more than 0.")
    paths = {BASELINE: Path(against), CANDIDATE: Path(compact)}
    protos = {role: read_model(path, weights=False) for role, path in paths.items()}
    for size in batches:
        _check_batch(paths[BASELINE], input_specs(protos[BASELINE]), size, shapes)

    sessions = {role: load(path, device=device, threads=threads) for role, path in paths.items()}
    check_same_inputs(sessions[BASELINE], sessions[CANDIDATE])
    _check_same_precision({role: weight_types(proto) for role, proto in protos.items()}, paths)

    where = parse_device(device)
    before = load_average()
    results = []
    for size in batches:
        concrete = resolve_shapes(protos[BASELINE], batch=size, shapes=shapes, dims=dims)
        say(f"batch {size}: comparing outputs")
        agreement = _agree(sessions, protos[BASELINE], concrete, bounds, seed)
        costs = {role: count_cost(proto, shapes=concrete) for role, proto in protos.items()}
        feed = sample_inputs(protos[BASELINE], shapes=concrete, bounds=bounds, seed=seed)

        say(f"batch {size}: measuring")
        speed = compare_speed(
            paths[CANDIDATE],
            paths[BASELINE],
            feed,
            device=device,
            threads=threads,
            margin=margin,
            budget_seconds=budget_seconds,
            seed=seed,
        )
        results.append(
            BatchResult(
                batch=size,
                shapes=concrete,
                agreement=agreement,
                baseline=Latency.of(speed.samples, BASELINE),
                candidate=Latency.of(speed.samples, CANDIDATE),
                baseline_macs=costs[BASELINE].macs,
                candidate_macs=costs[CANDIDATE].macs,
                uncounted=costs[BASELINE].uncounted + costs[CANDIDATE].uncounted,
                speed_up=speed.speed_up,
                control=speed.control,
                verdict=speed.verdict,
                samples=speed.samples,
                candidate_least_macs=costs[CANDIDATE].least_macs,
                baseline_least_macs=costs[BASELINE].least_macs,
            )
        )
    first = results[0].shapes
    first_feed = sample_inputs(protos[BASELINE], shapes=first, bounds=bounds, seed=seed)
    facts = {}
    for role, path in paths.items():
        if footprint:
            say(f"{path.name}: cold start and memory in a fresh process")
        cost = count_cost(protos[role], shapes=first)
        measured = measure_footprint(path, first_feed, device=device, threads=threads) if footprint else None
        facts[role] = ModelFacts(str(path), stored_bytes(path), cost.parameters, cost.weight_bytes, measured)
    compared: ProfileComparison | None = None
    if profile:
        say("profiling node by node")
        compared = compare_profiles(paths[BASELINE], paths[CANDIDATE], first_feed, device=device, threads=threads)
    return BenchReport(
        baseline=facts[BASELINE],
        candidate=facts[CANDIDATE],
        device=str(where),
        threads=threads,
        margin=margin,
        seed=seed,
        machine=describe_machine(),
        load_average=before,
        results=tuple(results),
        profile=compared,
    )


def _check_batch(path: Path, specs: Sequence[InputSpec], size: int, shapes: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse a batch size that the inputs will not have, rather than report another one's times under its name."""
    for spec in specs:
        given = (shapes or {}).get(spec.name)
        if given and spec.shape and isinstance(spec.shape[0], str) and given[0] != size:
            raise InputError(
                f"{path}: batch {size}: the shape given for input '{spec.name}', {list(given)}, has {given[0]} first. "
                "Give the batch size that the shapes have, or leave the shape out."
            )
    fixed = [spec for spec in specs if spec.shape and isinstance(spec.shape[0], int)]
    if len(fixed) == len(specs) and fixed and not shapes and fixed[0].shape[0] != size:
        raise InputError(
            f"{path}: batch {size}: input '{fixed[0].name}' has the fixed first dimension {fixed[0].shape[0]}. "
            "Export the model with a dynamic batch, or bench that size."
        )


def _check_same_precision(types: Mapping[str, frozenset[str]], paths: Mapping[str, Path]) -> None:
    theirs, ours = types[BASELINE], types[CANDIDATE]
    if theirs and ours and theirs != ours:
        raise UnsupportedModelError(
            f"{paths[CANDIDATE]}: holds {', '.join(sorted(ours))} weights, {paths[BASELINE]} holds "
            f"{', '.join(sorted(theirs))}: a comparison needs equal precision. Convert one of them first."
        )


def _agree(
    sessions: Mapping[str, Session],
    proto: onnx.ModelProto,
    concrete: Mapping[str, tuple[int, ...]],
    bounds: Mapping[str, int] | None,
    seed: int,
) -> Agreement:
    """The worst agreement over several random inputs."""
    found = [
        compare_outputs(
            sessions[BASELINE],
            sessions[CANDIDATE],
            sample_inputs(proto, shapes=concrete, bounds=bounds, seed=seed + draw),
        )
        for draw in range(_DRAWS_COMPARED)
    ]
    return max(found, key=lambda agreement: agreement.difference)
