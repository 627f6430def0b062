"""How does a comparison look as a picture: latency against batch size, and time layer by layer?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0runtime.errors import MissingDependencyError, OptionError
from l0runtime.measurement.profiling import NodeProfile, ProfileComparison

if TYPE_CHECKING:
    from l0runtime.measurement.report import BenchReport

_FORMATS = (".png", ".svg", ".pdf")
# more bars than this are too thin to be read; the rest become one
_LAYERS_SHOWN = 40
_OTHERS = "everything else"
_COLOURS = {"gated": "tab:gray", "compact": "tab:blue"}


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be written, before anything is measured for it.

    Raises:
        OptionError: the file name ends in no format known here, or its folder does not exist.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix not in _FORMATS:
        raise OptionError(f"--plot {path}: expected a name that ends in .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise OptionError(f"--plot {path}: there is no folder {path.parent}. Create it first.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "a plot needs matplotlib, which is not installed. Run: pip install 'l0runtime[plot]'"
        ) from error


def plot_report(report: BenchReport, path: Path) -> None:
    """Latency against batch size and, if profiled, time layer by layer, as PNG, SVG or PDF.

    Raises: as `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    if report.profile is None:
        figure = Figure(figsize=(6, 4), layout="constrained")
        _plot_latency(figure.add_subplot(), report)
    else:
        layers = layer_times(report.profile)
        figure = Figure(figsize=(13, max(4.0, 1.2 + 0.24 * len(layers))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
        _plot_latency(left, report)
        _plot_layers(right, layers, report.results[0].batch)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure; nothing half-written stays behind."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def layer_times(profile: ProfileComparison) -> list[tuple[str, float, float]]:
    """(layer, gated us, compact us) in the order of the network, the slowest ones by name and the rest in one row."""
    before, after = (_by_layer(nodes) for nodes in (profile.baseline, profile.candidate))
    names = list(dict.fromkeys([*before, *after]))
    slowest = sorted(names, key=lambda name: -max(before.get(name, 0.0), after.get(name, 0.0)))[:_LAYERS_SHOWN]
    rows = [(name, before.get(name, 0.0), after.get(name, 0.0)) for name in names if name in slowest]
    rest_before = sum(node.time_us for node in profile.baseline) - sum(us for _, us, _ in rows)
    rest_after = sum(node.time_us for node in profile.candidate) - sum(us for _, _, us in rows)
    return [*rows, (_OTHERS, rest_before, rest_after)]


def _by_layer(nodes: tuple[NodeProfile, ...]) -> dict[str, float]:
    times: dict[str, float] = {}
    for node in nodes:
        if node.macs:
            times[node.label] = times.get(node.label, 0.0) + node.time_us
    return times


def _plot_latency(axes: Any, report: BenchReport) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    batches = [result.batch for result in report.results]
    for name, latencies in (
        ("gated", [result.baseline for result in report.results]),
        ("compact", [result.candidate for result in report.results]),
    ):
        medians = [latency.p50_ms for latency in latencies]
        axes.plot(batches, medians, marker="o", label=name, color=_COLOURS[name])
    for result in report.results:
        axes.annotate(
            f"{result.speed_up.estimate:.2f}x",
            (result.batch, result.candidate.p50_ms),
            textcoords="offset points",
            xytext=(0, -16 if result.speed_up.estimate >= 1 else 8),  # on the side away from the other curve
            ha="center",
        )
    axes.set_xlabel("batch size")
    axes.set_ylabel("median latency (ms)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(0.2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    axes.set_title(f"{report.device}, {threads}; with the speed-up")
    axes.legend()


def _plot_layers(axes: Any, layers: list[tuple[str, float, float]], batch: int) -> None:
    height = 0.4
    for offset, (name, column) in ((-height / 2, ("gated", 1)), (height / 2, ("compact", 2))):
        positions = [index + offset for index in range(len(layers))]
        axes.barh(positions, [row[column] for row in layers], height, label=name, color=_COLOURS[name])
    axes.set_yticks(range(len(layers)), [row[0] for row in layers], fontsize=8)
    axes.invert_yaxis()  # the network's first layer on top
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlabel("time (us)")
    axes.set_title(f"time layer by layer, batch {batch}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
