"""What do the result files say? The tables of this folder's README, from the files that the scripts wrote.

python -m benchmarks.serving.table
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """A result file of this folder."""
    found: dict[str, Any] = json.loads((HERE / name).read_text())
    return found


def comparison(result: dict[str, Any]) -> list[str]:
    """Requests a second, latencies and cores of each server: medians over the rounds."""
    lines = [
        "| server | protocol | 32 clients: requests/s | p50 ms | p99 ms | server cores | client cores "
        "| 1 client: overhead ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cells = dict.fromkeys((block["server"], block["protocol"]) for block in result["blocks"])
    for server, protocol in cells:
        own = [block for block in result["blocks"] if (block["server"], block["protocol"]) == (server, protocol)]
        many, one = ([block for block in own if block["clients"] == clients] for clients in (32, 1))

        def middle(blocks: list[dict[str, Any]], name: str) -> float:
            return statistics.median(block[name] for block in blocks)

        overhead = statistics.median(block["p50_ms"] - block["direct_ms"] for block in one)
        lines.append(
            f"| {server} | {protocol} | {middle(many, 'requests_per_s'):,.0f} | {middle(many, 'p50_ms'):.1f} "
            f"| {middle(many, 'p99_ms'):.1f} | {middle(many, 'server_cores'):.2f} | {middle(many, 'client_cores'):.2f} "
            f"| {overhead:.2f} |"
        )
    return [*lines, "", "| bar or ratio | found |", "|---|---|", *pairs(result["ratios"]), *pairs(result["bars"])]


def endured(result: dict[str, Any]) -> list[str]:
    """What was answered in each phase, wrongly or not at all."""
    sigterm = result["sigterm"]
    total = {name: sum(phase[name] for phase in sigterm) for name in ("answered", "wrong", "lost", "refused")}
    phases = [
        ("steady, JSON and binary in turn", result["steady"]),
        (f"{result['reload']['reloads']} reloads", result["reload"]),
        (f"SIGTERM, {len(sigterm)} times", total),
        (f"gRPC, {result['grpc']['reloads']} reloads and SIGTERM", result["grpc"]),
    ]
    lines = ["| phase | answered | wrong | lost | refused |", "|---|---|---|---|---|"]
    for name, phase in phases:
        lines.append(f"| {name} | {phase['answered']:,} | {phase['wrong']} | {phase['lost']} | {phase['refused']} |")
    growth = result["steady"]["memory_growth_after_that_bytes"] / 1024
    after = result["steady"]["memory_after_a_fifth_bytes"] / 2**20
    return [*lines, "", f"Memory after a fifth of the steady phase {after:.1f} MiB, at its end {growth:+.0f} KiB."]


def faulty(result: dict[str, Any]) -> list[str]:
    """What was tried, and what was wrong about the answers."""
    faults, many = result["faults"], result["many_at_once"]
    cases = ", ".join(f"{number} {kind}" for kind, number in faults["cases"].items() if kind != "none")
    lines = ["| tried | outcome |", "|---|---|"]
    lines.append(f"| faults: {cases} | {len(faults['wrong'])} with another status than the right one |")
    lines.append(
        f"| {many['half_open']} half-open connections at once | {many['served']} of {many['good_requests']} good "
        f"requests answered meanwhile, {many['ended_by_the_server']} connections ended by the server |"
    )
    for name, kind in (
        ("binary_fuzz", "binary requests"),
        ("http_fuzz", "HTTP requests"),
        ("grpc_fuzz", "gRPC messages"),
    ):
        found = result[name]
        counts = found.get("statuses") or found["codes"]
        number = found.get("requests") or found["calls"]
        shown = ", ".join(f"{status} {count:,}" for status, count in counts.items())
        lines.append(f"| {number:,} spoilt {kind} | {shown}; {len(found['wrong'])} wrong |")
    for name in ("schemathesis_static", "schemathesis_all"):
        if name in result:
            found = result[name]
            cases = next((line for line in found["summary"] if "generated" in line), "").strip()
            options = " ".join(found["options"])
            lines.append(f"| {found['version'].replace(', version', '')}, `{options}` | {cases} |")
    after = result["afterwards"]
    lines.append(
        f"| afterwards | alive {after['alive']}, errors of its own {after['own_errors_logged']}, connections left open "
        f"{after['open_files_more']} |"
    )
    return lines


def proved(result: dict[str, Any]) -> list[str]:
    """What a real tritonserver made of the exported repository."""
    runs = {int(size): count for size, count in result["runs_by_batch_size"].items()}
    share = sum(size * count for size, count in runs.items() if size > 1) / sum(
        size * count for size, count in runs.items()
    )
    return [
        f"tritonserver {result['tritonserver']}: {result['answered']:,} answers, {result['wrong']} wrong, "
        f"{result['lost']} lost; {result['requests_counted']:,} requests in {result['runs_counted']:,} runs "
        f"(on average {result['requests_counted'] / result['runs_counted']:.1f} in one, {share:.1%} in company); "
        f"{len(result['dtypes_given_back_unchanged'])} dtypes given back unchanged; "
        f"{result['requests_of_mixing_rows_answered_one_by_one']} of 24 requests of mixing rows answered one by one."
    ]


def pairs(found: dict[str, Any]) -> list[str]:
    """Rows of names and values."""
    return [f"| {name} | {value} |" for name, value in found.items()]


def main() -> None:
    for name, table in (
        ("result.json", comparison),
        ("endurance.json", endured),
        ("faults.json", faulty),
        ("triton.json", proved),
    ):
        if (HERE / name).exists():
            print("\n".join([f"{name}:", "", *table(read(name)), ""]))


if __name__ == "__main__":
    main()
