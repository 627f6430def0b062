"""The order of the measurement is what it claims to be, and only kept calls count."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import pytest

from l0runtime.measurement.paired import (
    BASELINE,
    CANDIDATE,
    CONTROL,
    ROLES,
    ROUND_ORDERS,
    Plan,
    Samples,
    choose_plan,
    clock_for,
    measure,
)


class Recorder:
    """Counts sessions and calls in the order they happen."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.called: list[str] = []

    def maker(self, role: str) -> Callable[[], Recorder.Runner]:
        def make() -> Recorder.Runner:
            self.made.append(role)
            return Recorder.Runner(self, role)

        return make

    class Runner:
        def __init__(self, recorder: Recorder, role: str) -> None:
            self._recorder, self._role = recorder, role

        def run(self) -> None:
            self._recorder.called.append(self._role)


def run_plan(plan: Plan, seed: int = 0) -> tuple[Recorder, Samples]:
    recorder = Recorder()
    makers = {role: recorder.maker(role) for role in ROLES}
    return recorder, measure(makers, budget_seconds=1.0, clock="wall", seed=seed, plan=plan)


def test_every_creation_order_happens_once_and_is_recorded_as_it_was() -> None:
    recorder, samples = run_plan(Plan(blocks=2, calls=3, dropped=1))
    made = [tuple(recorder.made[i : i + 3]) for i in range(0, len(recorder.made), 3)]
    assert sorted(made) == sorted(ROUND_ORDERS)
    assert tuple(made) == samples.creation_order


def test_blocks_run_as_recorded_each_role_once_in_every_group() -> None:
    plan = Plan(blocks=4, calls=5, dropped=1)
    recorder, samples = run_plan(plan)
    calls = iter(recorder.called)
    for creation, blocks in zip(samples.creation_order, samples.block_order, strict=True):
        assert [next(calls) for _ in range(6)] == [role for role in creation for _ in range(2)]  # warm-up
        for block in blocks:
            assert sorted(block) == sorted(ROLES)
            assert [next(calls) for _ in range(15)] == [role for role in block for _ in range(5)]
    assert next(calls, None) is None
    assert len({block for blocks in samples.block_order for block in blocks}) > 1


def test_the_seed_decides_the_order() -> None:
    plan = Plan(blocks=3, calls=3, dropped=1)
    assert run_plan(plan, seed=1)[1].block_order == run_plan(plan, seed=1)[1].block_order
    assert run_plan(plan, seed=1)[1].block_order != run_plan(plan, seed=2)[1].block_order


def test_shapes_of_the_samples_follow_the_plan() -> None:
    _, samples = run_plan(Plan(blocks=2, calls=7, dropped=1, chunk=3))
    assert samples.latency_ms[BASELINE].shape == (6, 2, 7)
    assert samples.thread_ms[BASELINE].shape == (6, 2, 2)
    assert samples.kept_ms(CONTROL).shape == (6 * 2 * 6,)


def synthetic(clock: str) -> Samples:
    # wall: dropped calls take 1000 ms, then 3, 9 and 1 ms (faster half: 2), the candidate's half of that;
    # processor: 4 ms against 1 ms
    wall = {role: np.tile([1000.0, 3.0, 9.0, 1.0], (6, 2, 1)) for role in ROLES}
    wall[CANDIDATE] = np.tile([1000.0, 1.5, 4.5, 0.5], (6, 2, 1))
    thread = {role: np.full((6, 2, 1), 4.0) for role in ROLES}
    thread[CANDIDATE] = np.full((6, 2, 1), 1.0)
    return Samples(Plan(2, 4, 1, 3), clock, (), (), wall, thread, 0.0)  # type: ignore[arg-type]


def test_a_block_stands_for_the_faster_half_of_its_kept_calls_by_the_chosen_clock() -> None:
    assert synthetic("wall").block_ms(BASELINE) == pytest.approx(np.full((6, 2), 2.0))
    assert synthetic("thread").block_ms(BASELINE) == pytest.approx(np.full((6, 2), 4.0))
    assert np.exp(synthetic("wall").log_speed_ups()) == pytest.approx(np.full((6, 2), 2.0))
    assert np.exp(synthetic("thread").log_speed_ups()) == pytest.approx(np.full((6, 2), 4.0))
    assert synthetic("wall").kept_ms(BASELINE).max() == 9.0


def test_the_candidate_is_set_against_both_runs_of_the_baseline() -> None:
    samples = synthetic("thread")
    samples.thread_ms[CONTROL][:] = 9.0
    # sqrt(4 * 9) / 1 for the candidate, 4 / 9 for the control
    assert np.exp(samples.log_speed_ups()) == pytest.approx(np.full((6, 2), 6.0))
    assert np.exp(samples.log_control_ratios()) == pytest.approx(np.full((6, 2), 4 / 9))


def test_waiting_for_a_core_is_the_wall_time_that_the_processor_clock_lacks() -> None:
    samples = synthetic("thread")
    for role in ROLES:
        samples.latency_ms[role][:, :, 1:] = 10.0
        samples.thread_ms[role][:] = 4.0
    assert samples.waiting_share() == pytest.approx(0.6)
    assert synthetic("wall").waiting_share() is None


def test_garbage_collection_is_restored() -> None:
    assert gc.isenabled()
    run_plan(Plan(1, 2, 1))
    assert gc.isenabled()


def test_only_a_single_thread_on_the_cpu_is_timed_by_its_processor_time() -> None:
    assert clock_for("cpu", 2) == "wall"
    assert clock_for("cuda", 1) == "wall"


@pytest.mark.parametrize(("group_seconds", "creation_seconds"), [(1e-5, 0.001), (1e-3, 0.02), (0.02, 0.1), (1.0, 5.0)])
def test_a_plan_fits_its_budget_or_is_the_least_that_means_something(
    group_seconds: float, creation_seconds: float
) -> None:
    plan = choose_plan(group_seconds, creation_seconds, budget_seconds=1.2)
    assert plan.blocks >= 3
    assert plan.kept >= 4
    assert plan.dropped >= 1
    assert plan.kept % plan.chunk == 0
    total = 6 * (creation_seconds + plan.blocks * plan.calls * group_seconds)
    assert total <= 1.2 or (plan.blocks, plan.calls) == (3, 5)


def test_many_short_blocks_are_planned_rather_than_few_long_ones() -> None:
    # 6 rounds of 0.3 s - 0.06 s, 5 ms a group: 48 calls of each model
    assert choose_plan(5e-3, 0.06, budget_seconds=1.8) == Plan(blocks=9, calls=5, dropped=1)
    # calls of 10 us: at most 24 blocks of 60 calls, of which 12 are dropped and 40 make whole chunks of 0.1 ms
    plan = choose_plan(3e-5, 0.01, budget_seconds=1.8)
    assert (plan.blocks, plan.calls, plan.dropped, plan.chunk) == (24, 52, 12, 10)


def test_a_disturbed_call_does_not_make_the_plan_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from l0runtime.measurement import paired

    now = [0.0]
    costs = iter([9.0, 1.0, 2.0] * 3)

    def run() -> None:
        now[0] += next(costs)

    runners = {role: SimpleNamespace(run=run) for role in ROLES}
    assert paired._group_seconds(runners, lambda: now[0]) == pytest.approx(3.0)  # type: ignore[arg-type]
