"""How is the whole zoo judged on a small machine, in pieces that can be stopped and resumed?

    python -m benchmarks.zoo.run --results rows.jsonl --cache exports/            everything, smallest models first
    python -m benchmarks.zoo.run ... --only 'torchvision/resnet*,timm/vit*'       some
    python -m benchmarks.zoo.run ... --shard 0/4 --limit-params 30                a quarter of the models up to 30 M

Each model runs in a process of its own with a time and a memory limit. Rows that the result file already holds are not
repeated; a model that dies leaves a row that says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.zoo.catalogue import catalogue, millions_of_parameters
from benchmarks.zoo.gating import SCENARIOS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for unoptimised exports")
    parser.add_argument("--scratch", help="folder for temporary models")
    parser.add_argument("--only", default="*", help="comma-separated patterns of model names")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th model, starting with the i-th")
    parser.add_argument(
        "--limit-params", type=float, default=float("inf"), help="largest model, millions of parameters"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per model")
    parser.add_argument("--memory", type=float, default=12, help="GB per model")
    parser.add_argument("--limit", type=float, default=1e-5)
    parser.add_argument("--keep-wrong")
    parser.add_argument("--keep-exports", type=float, default=30, help="keep exports of models up to so many millions")
    parser.add_argument("--redo", action="store_true", help="judge again what the result file already holds")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no model after so many seconds")
    options = parser.parse_args()

    sizes = millions_of_parameters()
    patterns = options.only.split(",")
    names = [
        n for n in catalogue() if any(fnmatch.fnmatch(n, p) for p in patterns) and sizes[n] <= options.limit_params
    ]
    names.sort(key=lambda n: (sizes[n], n))
    index, count = (int(part) for part in options.shard.split("/"))
    scenarios = options.scenarios.split(",")
    done = set() if options.redo else rows_done(options.results)
    started = time.monotonic()
    for name in names[index::count]:
        if time.monotonic() - started > options.seconds:
            print("time is up; run the same command again to go on", file=sys.stderr)
            break
        missing = [s for s in scenarios if (name, s) not in done]
        if not missing or (name, "*") in done:
            continue
        begun = time.monotonic()
        status = judge_in_process(name, missing, options)
        print(f"{name}  {sizes[name]:.1f} M  {time.monotonic() - begun:.0f} s  {status}", file=sys.stderr, flush=True)
        if sizes[name] > options.keep_exports:
            shutil.rmtree(options.cache / name.replace("/", "__"), ignore_errors=True)


def judge_in_process(name: str, scenarios: list[str], options: argparse.Namespace) -> str:
    """Judge one model in a process group with limits; a row is written if it dies."""
    command = [sys.executable, "-m", "benchmarks.zoo.judge", name, "--scenarios", ",".join(scenarios)]
    command += ["--results", str(options.results), "--cache", str(options.cache), "--limit", str(options.limit)]
    command += ["--engine", engine_revision()]
    if options.keep_wrong:
        command += ["--keep-wrong", options.keep_wrong]
    if options.scratch:
        command += ["--scratch", options.scratch]
    ceiling = int(options.memory * 1e9)
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling)),
    )
    try:
        _, errors = process.communicate(timeout=options.timeout)
        reason = None if process.returncode == 0 else f"exit {process.returncode}: {_last_line(errors)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        reason = f"no result within {options.timeout:.0f} s"
    if reason is None:
        return "done"
    missing = [s for s in scenarios if (name, s) not in rows_done(options.results)]
    with options.results.open("a") as file:
        for scenario in missing:
            row = {"model": name, "scenario": scenario, "status": "harness failed", "reason": reason[:500]}
            file.write(json.dumps(row | {"engine": engine_revision()}) + "\n")
    return reason


def rows_done(results: Path) -> set[tuple[str, str]]:
    """(model, scenario) of every row of a result file."""
    if not results.exists():
        return set()
    rows = [json.loads(line) for line in results.read_text().splitlines() if line]
    return {(row["model"], row["scenario"]) for row in rows}


def engine_revision() -> str:
    """Revision of the source tree that judges."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return answer.stdout.strip() or "unknown"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    main()
