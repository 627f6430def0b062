"""Measure models: which of two is faster (`bench`), and what a model costs (`count_cost`).

| file | question |
|---|---|
| comparison.py | is one model faster than another, by how much and how surely? |
| paired.py | how are two models timed so that the machine's moods hit both alike? |
| statistics.py | which interval holds the ratio, and what verdict follows? |
| agreement.py | do two models compute the same? |
| cost.py | how much arithmetic does a model do, and how many weights does it hold? |
| footprint.py | what does a model cost before it is warm? |
| profiling.py, widths.py | where does the time go, and what limits the gain? |
| report.py, rendering.py | what came out, as data, and as a table or a plot |
"""

from __future__ import annotations

from l0runtime.measurement.comparison import bench
from l0runtime.measurement.cost import Cost, NodeCost, count_cost
from l0runtime.measurement.report import BatchResult, BenchReport
from l0runtime.measurement.statistics import Interval, Verdict

__all__ = ["BatchResult", "BenchReport", "Cost", "Interval", "NodeCost", "Verdict", "bench", "count_cost"]
