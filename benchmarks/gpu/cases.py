"""What is measured on a GPU, section by section?

correctness   gated on the CPU in float32 against compact on the GPU, in float32 and float16
sweep         a chain of 3x3 convolutions at 48 to 72 channels: precision, layout, algorithm search
speed_ups     gated against compact at 30, 50 and 70 % closed gates, batch 1 to 256, float32 and float16
graphs        compact with and without CUDA graphs
native        compact against the same architecture built at the surviving widths
compiled      compact against torch.compile of the gated module
conditional   see conditional.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.models import closed_module, conv_chain, feed_of, gated_and_compact
from benchmarks.gpu.models import native as native_file
from benchmarks.gpu.timing import Timed, time_ways
from l0runtime.measurement import count_cost
from l0runtime.session import Session, load
from l0runtime.session.devices import Device
from l0runtime.session.precision import with_precision

if TYPE_CHECKING:
    from benchmarks.gpu.evidence import Evidence, Settings

# of the output's scale: float32 sums of up to 3072 terms through 50 layers; float16 has 11 bits
LIMITS = {"float32": 1e-4, "float16": 3e-2}
PRECISIONS = ("float32", "float16")


class Sessions:
    """Sessions of one device, each model converted and loaded once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[tuple[Path, str], Session] = {}

    def get(self, path: Path, precision: str = "float32") -> Session:
        key = (path, precision)
        if key not in self._open:
            self._open[key] = load(_converted(path, precision), device=self._settings.device)
        return self._open[key]

    def drop(self) -> None:
        """Free the GPU's memory."""
        self._open.clear()


def _converted(path: Path, precision: str) -> str | Path | bytes:
    return with_precision(path, precision, path.name)


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    return max(float(np.abs(found[n] - expected[n]).max() / np.abs(expected[n]).max()) for n in expected)


def _feed(name: str, batch: int, session: Session) -> dict[str, Any]:
    return feed_of(name, batch, [spec.name for spec in session.inputs])


def _row(timed: Timed, candidate: str, baseline: str) -> dict[str, Any]:
    """Times, and how many times as fast the candidate is."""
    return {
        "ms": {way: timed.ms(way) for way in timed.block_ms},
        "speed_up": timed.ratio(baseline, candidate),
    }


def correctness(evidence: Evidence, settings: Settings, folder: Path) -> None:
    for name in settings.networks:
        for closed in settings.closed:
            for precision in PRECISIONS:

                def run(name: str = name, closed: float = closed, precision: str = precision) -> dict[str, Any]:
                    gated, small = gated_and_compact(name, 1 - closed, folder)
                    reference = load(gated, device="cpu")
                    feed = _feed(name, 2, reference)
                    session = load(_converted(small, precision), device=settings.device)
                    difference = _difference(reference.run(feed), session.run(feed))
                    limit = LIMITS[precision]
                    return {"difference": difference, "limit": limit, "same": difference <= limit}

                evidence.measure("correctness", {"network": name, "closed": closed, "precision": precision}, run)


def sweep(evidence: Evidence, settings: Settings, folder: Path) -> None:
    """Time of each width beside 64 (or the widest), for every precision; then layouts and searches at some widths."""
    batch = 2 if settings.dry else 32
    variants: list[tuple[str, str, dict[str, str], tuple[int, ...]]] = [
        ("float32", "float32", {"use_tf32": "0"}, settings.channels),
        ("tf32", "float32", {"use_tf32": "1"}, settings.channels),
        ("float16", "float16", {}, settings.channels),
        ("float16 NHWC", "float16", {"prefer_nhwc": "1"}, settings.channels),
        ("tf32 NHWC", "float32", {"use_tf32": "1", "prefer_nhwc": "1"}, settings.searched),
        ("float16 EXHAUSTIVE", "float16", {"cudnn_conv_algo_search": "EXHAUSTIVE"}, settings.searched),
        ("float32 EXHAUSTIVE", "float32", {"cudnn_conv_algo_search": "EXHAUSTIVE"}, settings.searched),
        ("float32 DEFAULT", "float32", {"cudnn_conv_algo_search": "DEFAULT"}, settings.searched),
    ]
    for variant, precision, options, widths in variants:
        for channels in widths:

            def run(
                channels: int = channels, precision: str = precision, options: dict[str, str] = options
            ) -> dict[str, Any]:
                model = conv_chain(channels, image=settings.image)
                session = load(
                    with_precision(model, precision, "chain"),
                    device=settings.device,
                    provider_options={} if settings.dry else options,
                )
                x = np.random.default_rng(0).standard_normal((batch, channels, settings.image, settings.image))
                timed = time_ways({"chain": session.bind({"x": x.astype(np.float32)}).run}, seconds=settings.seconds)
                return {"ms": timed.ms("chain")}

            evidence.measure("sweep", {"variant": variant, "channels": channels}, run)


def speed_ups(evidence: Evidence, settings: Settings, folder: Path) -> None:
    sessions = Sessions(settings)
    for closed in settings.closed:
        for name in settings.networks:
            for precision in PRECISIONS:
                for batch in settings.batches:

                    def run(
                        name: str = name, closed: float = closed, precision: str = precision, batch: int = batch
                    ) -> dict[str, Any]:
                        paths = gated_and_compact(name, 1 - closed, folder)
                        gated, small = (sessions.get(path, precision) for path in paths)
                        feed = _feed(name, batch, small)
                        ways: dict[str, Callable[[], object]] = {
                            "gated": gated.bind(feed).run,
                            "compact": small.bind(feed).run,
                        }
                        timed = time_ways(ways, seconds=settings.seconds)
                        before, after = (count_cost(path, batch=batch).macs for path in paths)
                        return _row(timed, "compact", "gated") | {"macs_ratio": before / after}

                    case = {"network": name, "closed": closed, "precision": precision, "batch": batch}
                    evidence.measure("speed_ups", case, run)
                sessions.drop()


def graphs(evidence: Evidence, settings: Settings, folder: Path) -> None:
    """What a caller with NumPy arrays pays for a call, and what a caller with bound buffers does."""
    closed = settings.closed[0]
    for name in settings.networks:
        for batch in settings.batches[:3]:

            def run(name: str = name, batch: int = batch) -> dict[str, Any]:
                _, small = gated_and_compact(name, 1 - closed, folder)
                plain = load(small, device=settings.device)
                recorded = _with_graphs(small, batch, settings)
                feed = _feed(name, batch, plain)
                difference = _difference(plain.run(feed), recorded.run(feed))
                other = _feed(name, batch + 1, plain)
                other = {key: array[:batch] for key, array in other.items()}
                # replayed on other inputs: a stale graph would give the first result again
                difference = max(difference, _difference(plain.run(other), recorded.run(other)))
                bound, bound_recorded = plain.bind(feed), recorded.bind(feed)
                ways: dict[str, Callable[[], object]] = {
                    "run": lambda: plain.run(feed),
                    "run with graph": lambda: recorded.run(feed),
                    "bound": bound.run,
                    "bound with graph": bound_recorded.run,
                }
                timed = time_ways(ways, seconds=settings.seconds)
                return _row(timed, "bound with graph", "bound") | {
                    "speed_up_numpy": timed.ratio("run", "run with graph"),
                    "difference": difference,
                    "limit": LIMITS["float32"],
                    "same": difference <= LIMITS["float32"],
                }

            evidence.measure("graphs", {"network": name, "closed": closed, "batch": batch}, run)


def _with_graphs(path: Path, batch: int, settings: Settings) -> Session:
    if not settings.dry:
        return load(path, device=settings.device, cuda_graphs=True, buckets=(batch,))
    # without a GPU, `load` refuses CUDA graphs; the code around them runs all the same on ordinary runs
    import onnxruntime

    raw = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return Session(raw, Device("cpu"), path.name, (), buckets=(batch,), cuda_graphs=True)


def native(evidence: Evidence, settings: Settings, folder: Path) -> None:
    closed = settings.closed[0]
    for name in settings.networks:
        for batch in settings.batches[:3]:

            def run(name: str = name, batch: int = batch) -> dict[str, Any]:
                _, small = gated_and_compact(name, 1 - closed, folder)
                paths = {"compact": small, "native": native_file(name, 1 - closed, folder)}
                sessions = {way: load(path, device=settings.device) for way, path in paths.items()}
                ways: dict[str, Callable[[], object]] = {
                    way: session.bind(_feed(name, batch, session)).run for way, session in sessions.items()
                }
                timed = time_ways(ways, seconds=settings.seconds)
                macs = {way: count_cost(path, batch=batch).macs for way, path in paths.items()}
                return {
                    "ms": {way: timed.ms(way) for way in ways},
                    "compact_over_native": timed.ratio("compact", "native"),
                    "same": macs["compact"] == macs["native"],
                }

            evidence.measure("native", {"network": name, "closed": closed, "batch": batch}, run)


def compiled(evidence: Evidence, settings: Settings, folder: Path) -> None:
    import torch

    closed = settings.closed[0]
    for name in settings.compiled:
        for precision in PRECISIONS:
            for batch in settings.batches[:1] if settings.dry else (1, 32):

                def run(name: str = name, precision: str = precision, batch: int = batch) -> dict[str, Any]:
                    _, small = gated_and_compact(name, 1 - closed, folder)
                    session = load(_converted(small, precision), device=settings.device)
                    feed = _feed(name, batch, session)
                    dtype = torch.float16 if precision == "float16" and not settings.dry else torch.float32
                    module = closed_module(name, 1 - closed).to(settings.device, dtype)
                    tensors = [torch.from_numpy(array).to(settings.device) for array in feed.values()]
                    tensors = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]
                    # the compiler of the CPU needs a C++ compiler and minutes; dry runs try the call, not the compiler
                    fast = torch.compile(module, backend="eager") if settings.dry else torch.compile(module)

                    def call() -> None:
                        with torch.inference_mode():
                            fast(*tensors)
                        if not settings.dry:
                            torch.cuda.synchronize()

                    ways: dict[str, Callable[[], object]] = {
                        "torch.compile of the gated module": call,
                        "compact": session.bind(feed).run,
                    }
                    timed = time_ways(ways, seconds=settings.seconds)
                    return _row(timed, "compact", "torch.compile of the gated module")

                case = {"network": name, "closed": closed, "precision": precision, "batch": batch}
                evidence.measure("compiled", case, run)
