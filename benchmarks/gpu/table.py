"""How does the evidence look as Markdown?"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def write_table(evidence: dict[str, Any]) -> str:
    """One table for each section, and above them what was measured on what."""
    machine = evidence["machine"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    parts = [
        f"# GPU evidence: {evidence['what']}",
        f"{gpus}; {machine['processor']}; versions {machine['versions']}; {evidence['seconds']} s.",
        f"Errors: {evidence['errors']}; outputs or work that differ: {evidence['wrong']}; "
        f"cases left out for lack of time: {len(evidence['left_out'])}.",
    ]
    for section, rows in evidence["sections"].items():
        write = _SECTIONS.get(section, _plain)
        parts += [f"## {section}", write(rows)]
        parts += [f"- {_case(row)}: {row['error']}" for row in rows if "error" in row]
    return "\n\n".join(parts) + "\n"


def _case(row: Row) -> str:
    return " ".join(
        str(row[key])
        for key in ("network", "variant", "closed", "precision", "batch", "channels", "size")
        if key in row
    )


def _ratio(found: dict[str, float]) -> str:
    return f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _grid(rows: list[Row], down: tuple[str, ...], across: str, cell: Any) -> str:
    """A table with a row for each value of `down` and a column for each of `across`."""
    good = [row for row in rows if "error" not in row]
    columns = list(dict.fromkeys(row[across] for row in good))
    lines: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in good:
        lines.setdefault(tuple(row[key] for key in down), {})[row[across]] = cell(row)
    head = [*down, *(f"{across} {column}" for column in columns)]
    body = [[*map(str, key), *(cells.get(column, "-") for column in columns)] for key, cells in lines.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def _correctness(rows: list[Row]) -> str:
    return _grid(
        rows,
        ("network", "precision"),
        "closed",
        lambda row: f"{row['difference']:.1e}" + ("" if row["same"] else f" ABOVE {row['limit']:.0e}"),
    )


def _sweep(rows: list[Row]) -> str:
    """Time relative to 64 channels (or the widest) of the same variant."""
    base: dict[str, float] = {}
    for row in rows:
        if "error" not in row and (row["channels"] == 64 or row["variant"] not in base):
            base[row["variant"]] = row["ms"]
    text = _grid(rows, ("channels",), "variant", lambda row: f"{row['ms'] / base[row['variant']]:.2f}")
    times = ", ".join(f"{variant} {ms:.3f} ms" for variant, ms in base.items())
    return f"{text}\n\nRelative to 64 channels (or the first width) of the same column: {times}."


def _speed_ups(rows: list[Row]) -> str:
    return _grid(rows, ("network", "closed", "precision"), "batch", lambda row: _ratio(row["speed_up"]))


def _graphs(rows: list[Row]) -> str:
    return _grid(
        rows,
        ("network",),
        "batch",
        lambda row: f"bound {_ratio(row['speed_up'])}, NumPy {_ratio(row['speed_up_numpy'])}",
    )


def _native(rows: list[Row]) -> str:
    return _grid(rows, ("network",), "batch", lambda row: _ratio(row["compact_over_native"]))


def _conditional(rows: list[Row]) -> str:
    """Times, and the largest share of samples that may run for a branch to pay."""
    head = ["channels", "size", "batch", "MACs", "masked ms", "skipped", "half", "run", "pays up to a rate of", "same"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        if "error" not in row:
            times = [f"{row['ms'][way]:.3f}" for way in ("masked", "skipped", "half", "run")]
            lines.append([*(str(row[key]) for key in ("channels", "size", "batch")), f"{row['macs']:,}", *times])
            lines[-1] += [f"{row['break_even_rate']:.0%}", "yes" if row["same"] else f"NO, {row['difference']:.1e}"]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(rows: list[Row]) -> str:
    return "\n".join(f"- {row}" for row in rows)


_SECTIONS = {
    "correctness": _correctness,
    "sweep": _sweep,
    "speed_ups": _speed_ups,
    "graphs": _graphs,
    "native": _native,
    "compiled": _speed_ups,
    "conditional": _conditional,
}
