"""How are two models timed so that the machine's moods hit both alike?

Six rounds, each with fresh sessions, because a session's memory layout changes its speed for its whole life. In each
round the sessions are created in another of the six orders of (baseline, candidate, control), then timed in blocks of
consecutive calls, the three blocks of a group in random order. A block's first calls are dropped: they run on caches
that the model before left behind. The control is the baseline again; what it shows is not a difference of models.

Two clocks run. Latencies are wall time. Ratios use, wherever one thread does all the work, that thread's processor
time: under load a call of some milliseconds spends as much time waiting for a core as computing, the wait is the same
for a model of 3 ms and one of 4, and the ratio of wall times says little about either. By either clock a block stands
for the faster half of its calls, because an interrupt or a cache that another process emptied only ever adds time.
What is left of the machine's moods under load lasts longer than a block, so many short blocks beat few long ones, and
the candidate is set against both runs of the baseline that stand beside it in its group.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

Clock = Literal["thread", "wall"]
BASELINE, CANDIDATE, CONTROL = "baseline", "candidate", "control"
ROLES = (BASELINE, CANDIDATE, CONTROL)
_CALIBRATION_CALLS = 3
_SHORTEST_BLOCK = 5  # calls: one that is dropped, and four of which the faster two count
# every order of creation once
ROUND_ORDERS = tuple(itertools.permutations(ROLES))


class Runner(Protocol):
    """A model bound to its inputs; `run` returns when the outputs are complete."""

    def run(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    blocks: int  # groups of three blocks in each round
    calls: int  # calls in a block
    dropped: int  # of which the first so many do not count
    chunk: int = 1  # of the kept calls so many share one reading of the processor clock; divides their number

    @property
    def kept(self) -> int:
        return self.calls - self.dropped


@dataclass(frozen=True)
class Samples:
    """Everything that was measured, in the order it was run.

    Attributes:
        plan: how much was measured.
        creation_order: for each round the order in which its sessions were made.
        block_order: for each round and group the order in which its blocks ran.
        latency_ms: role to all wall times, dropped ones included, shape [rounds, blocks, calls].
        thread_ms: role to the processor time of a kept call, averaged over each chunk, shape
            [rounds, blocks, kept / chunk].
        clock: which of the two the ratios use.
        seconds: the whole measurement took this long.
    """

    plan: Plan
    clock: Clock
    creation_order: tuple[tuple[str, ...], ...]
    block_order: tuple[tuple[tuple[str, ...], ...], ...]
    latency_ms: dict[str, Array]
    thread_ms: dict[str, Array]
    seconds: float

    def kept_ms(self, role: str) -> Array:
        """Call times that count, flat."""
        return self.latency_ms[role][:, :, self.plan.dropped :].reshape(-1)

    def block_ms(self, role: str) -> Array:
        """What one call costs in each block: the mean of the faster half of its calls, shape [rounds, blocks]."""
        times = self.thread_ms[role] if self.clock == "thread" else self.latency_ms[role][:, :, self.plan.dropped :]
        return np.asarray(np.sort(times, axis=2)[:, :, : (times.shape[2] + 1) // 2].mean(axis=2))

    def log_speed_ups(self) -> Array:
        """log(time of the baseline / time of the candidate) in each group of blocks, shape [rounds, blocks].

        The control is the baseline too, so the baseline's time is the geometric mean of both.
        """
        baseline, candidate, control = (np.log(self.block_ms(role)) for role in ROLES)
        return np.asarray((baseline + control) / 2 - candidate)

    def log_control_ratios(self) -> Array:
        """log(time of the baseline / time of the control) in each group of blocks, shape [rounds, blocks]."""
        return np.asarray(np.log(self.block_ms(BASELINE)) - np.log(self.block_ms(CONTROL)))

    def waiting_share(self) -> float | None:
        """The share of time that calls waited for a core; None where processor time does not tell it."""
        if self.clock != "thread":
            return None
        wall = sum(float(self.kept_ms(role).mean()) for role in ROLES)
        busy = sum(float(self.thread_ms[role].mean()) for role in ROLES)
        return max(0.0, 1 - busy / wall)


def clock_for(device: str, threads: int) -> Clock:
    """Processor time where the calling thread does all the work and the system can time it finely."""
    fine = time.get_clock_info("thread_time").resolution <= 1e-6
    return "thread" if device == "cpu" and threads == 1 and fine else "wall"


def choose_plan(group_seconds: float, creation_seconds: float, budget_seconds: float) -> Plan:
    """As much as fits the budget, within bounds that keep the statistics meaningful: blocks as short as can be.

    Args:
        group_seconds: one call of each of the three models.
        creation_seconds: making and warming up the three sessions of a round.
        budget_seconds: for all rounds; exceeded only where even the least plan takes longer.
    """
    left = max(budget_seconds / len(ROUND_ORDERS) - creation_seconds, 0.0)
    calls_per_round = int(left / group_seconds)
    blocks = min(max(calls_per_round // _SHORTEST_BLOCK, 3), 24)
    calls = min(max(calls_per_round // blocks, _SHORTEST_BLOCK), 60)
    dropped = max(1, calls // 5)
    # reading the processor clock costs some 0.3 us, so it is read for no less than 0.1 ms of work
    chunk = min(max(1, math.ceil(len(ROLES) * 1e-4 / group_seconds)), calls - dropped)
    kept = (calls - dropped) // chunk * chunk
    return Plan(blocks, dropped + kept, dropped, chunk)


def measure(
    make: Mapping[str, Callable[[], Runner]],
    *,
    budget_seconds: float,
    clock: Clock,
    seed: int = 0,
    plan: Plan | None = None,
) -> Samples:
    """Time baseline, candidate and control.

    Args:
        make: role to a function that makes a fresh, bound session.
        budget_seconds: about how long to measure; where processor time is the clock, so much of that, so that a busy
            machine takes longer but does not measure less.
        clock: which time the ratios use.
        seed: of the random orders.
        plan: measure exactly so much, instead of what fits the budget.
    """
    read_clock = time.thread_time if clock == "thread" else time.perf_counter
    generator = np.random.default_rng(seed)
    orders = [ROUND_ORDERS[index] for index in generator.permutation(len(ROUND_ORDERS))]
    block_orders: list[tuple[tuple[str, ...], ...]] = []
    latency: dict[str, list[Array]] = {role: [] for role in ROLES}
    thread: dict[str, list[Array]] = {role: [] for role in ROLES}
    started = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()  # a collection inside a call would be charged to the model
    try:
        for order in orders:
            runners: dict[str, Runner] = {}
            begin = read_clock()
            for role in order:
                runners[role] = make[role]()
                for _ in range(2):
                    runners[role].run()
            if plan is None:
                created = read_clock() - begin
                plan = choose_plan(_group_seconds(runners, read_clock), created, budget_seconds)
            blocks = [tuple(ROLES[i] for i in generator.permutation(len(ROLES))) for _ in range(plan.blocks)]
            block_orders.append(tuple(blocks))
            for role in ROLES:
                latency[role].append(np.empty((plan.blocks, plan.calls)))
                thread[role].append(np.empty((plan.blocks, plan.kept // plan.chunk)))
            for index, block in enumerate(blocks):
                for role in block:
                    _time_block(runners[role].run, plan, latency[role][-1][index], thread[role][-1][index])
            del runners
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    assert plan is not None
    return Samples(
        plan,
        clock,
        tuple(orders),
        tuple(block_orders),
        {role: np.stack(latency[role]) for role in ROLES},
        {role: np.stack(thread[role]) for role in ROLES},
        time.perf_counter() - started,
    )


def _group_seconds(runners: Mapping[str, Runner], read_clock: Callable[[], float]) -> float:
    """Seconds of one call of each model, undisturbed: a plan made from a disturbed call would measure too little."""
    total = 0.0
    for runner in runners.values():
        times = []
        for _ in range(_CALIBRATION_CALLS):
            begin = read_clock()
            runner.run()
            times.append(read_clock() - begin)
        total += min(times)
    return total


def _time_block(run: Callable[[], None], plan: Plan, wall_ms: Array, thread_ms: Array) -> None:
    """Fill in the wall time of each call and the processor time of each chunk of kept calls."""
    wall, thread = time.perf_counter_ns, time.thread_time_ns
    for index in range(plan.dropped):
        begin = wall()
        run()
        wall_ms[index] = (wall() - begin) / 1e6
    for chunk in range(len(thread_ms)):
        start = plan.dropped + chunk * plan.chunk
        thread_begin = thread()
        for index in range(start, start + plan.chunk):
            begin = wall()
            run()
            wall_ms[index] = (wall() - begin) / 1e6
        thread_ms[chunk] = (thread() - thread_begin) / 1e6 / plan.chunk
