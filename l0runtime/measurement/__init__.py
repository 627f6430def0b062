"""Measure models: which of two is faster (`bench`), and what a model costs (`count_cost`).

| file | question |
|---|---|
| comparison.py | is one model faster than another, by how much and how surely? |
| paired.py | how are two models timed so that the machine's moods hit both alike? |
| speed.py | how many times as fast is one model file as another? |
| statistics.py | which interval holds the ratio, and what verdict follows? |
| agreement.py | do two models compute the same? |
| cost.py | how much arithmetic does a model do, and how many weights does it hold? |
| footprint.py | what does a model cost before it is warm? |
| profiling.py, widths.py | where does the time go, and what limits the gain? |
| layer_times.py | how long does a layer take at other widths? |
| layer_names.py | which layer of the file is a node of the optimised graph? |
| report.py, rendering.py, plotting.py | what came out, as data, as a table, as a picture |
"""

from __future__ import annotations

from l0runtime.measurement.comparison import bench
from l0runtime.measurement.cost import Cost, NodeCost, count_cost
from l0runtime.measurement.report import BatchResult, BenchReport
from l0runtime.measurement.speed import Speed, compare_speed
from l0runtime.measurement.statistics import Interval, Verdict

__all__ = [
    "BatchResult",
    "BenchReport",
    "Cost",
    "Interval",
    "NodeCost",
    "Speed",
    "Verdict",
    "bench",
    "compare_speed",
    "count_cost",
]
