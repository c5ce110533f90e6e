"""The benchmark of training tells what stands around a step, and which part of a run that is."""

import concurrent.futures
import dataclasses
import functools
import os
import threading
import time

import numpy as np
import pytest
from tiny import tiny_branch, tiny_config

from deepscan_jax import checkpoints, data, logs, training
from deepscan_jax.launch import benchmark, benchmark_train
from deepscan_jax.launch.benchmark_train import Around, Costs, Plan, Watch

PLAN = Plan(warm=2, counted=8, save_every=4)


def spent_of(plan, *, wait=0.1, rest=0.9, log=0.01, save=0.2, validation=0.5, end=3.0):
  """What a watch would note of a run with these seconds."""
  clock, spent = 100.0, [("saving", 99.0, 1.5), ("data 0", 99.5, 7.0)]
  for step in range(1, plan.steps + 1):
    clock += wait
    spent.append(("data 1", clock, wait))
    clock += rest
    for name, seconds, happens in (
      ("logging", log, True),
      ("saving", save, step < plan.steps and step % plan.save_every == 0),
      ("saving", validation, step == plan.validate_every),
      ("saving", end, step == plan.steps),
    ):
      if happens:
        clock += seconds
        spent.append((name, clock, seconds))
  return spent


def test_costs_are_told_apart_by_what_they_come_with():
  around = benchmark_train.costs_around(spent_of(PLAN), plan=PLAN)
  assert around.step_s == pytest.approx(0.1 + 0.9 + 0.01)
  assert dataclasses.astuple(around.data) == pytest.approx((0.1, 0, 0, 0))
  assert dataclasses.astuple(around.saving) == pytest.approx((0, 0.2, 0.5, 1.5 + 3.0))
  assert dataclasses.astuple(around.logging) == pytest.approx((0.01, 0, 0, 0.01))


def test_what_is_made_while_a_step_saves_is_no_quick_batch():
  spent = spent_of(PLAN)
  batches = [i for i, (name, _, _) in enumerate(spent) if name == "data 1"]
  for step in (5, 9):  # after a save
    name, end, _ = spent[batches[step - 1]]
    spent[batches[step - 1]] = (name, end, 0.0)
  assert benchmark_train.costs_around(spent, plan=PLAN).data.step == pytest.approx(0.1)


def test_a_run_that_ended_early_is_no_measure():
  with pytest.raises(ValueError, match="took 6 batches and not one for each of its 12 steps"):
    benchmark_train.costs_around(spent_of(dataclasses.replace(PLAN, counted=2)), plan=PLAN)


def test_shares_are_of_a_run_of_the_presets_own_length():
  config = tiny_config(steps=1000, save_every=100, validate_every=500)
  costs = Costs(step=0.01, save=1.0, validation=2.0, once=5.0)
  around = Around(step_s=0.5, data=costs, saving=costs, logging=costs)
  assert costs.in_run(config) == pytest.approx(10 + 10 + 4 + 5)
  assert around.share(costs, config) == pytest.approx(29 / 500)


def test_the_watched_run_counts_whole_rounds():
  plan = Plan()
  assert plan.warm % training._LOG_EVERY == plan.counted % training._LOG_EVERY == 0
  assert any(step % plan.save_every == 0 for step in range(plan.warm + 1, plan.validate_every))
  assert plan.steps < 2 * plan.validate_every


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now

  def wait(self, seconds):
    self.now += seconds


def test_what_is_watched_inside_of_another_counts_for_itself():
  clock = Clock()
  watch = Watch(clock)
  inner = watch.wrap("data", lambda: clock.wait(5.0))

  def outer():
    clock.wait(1.0)
    inner()
    clock.wait(2.0)
    raise KeyError

  with pytest.raises(KeyError):
    watch.wrap("logging", outer)()
  assert watch.spent == [("data", 6.0, 5.0), ("logging", 8.0, 3.0)]
  other = threading.Thread(target=inner)
  other.start()
  other.join()
  assert len(watch.spent) == 2


def test_a_watched_run_sees_where_time_goes(prepared_dataset, monkeypatch):
  def slow(owner, name, seconds):
    function = getattr(owner, name)

    @functools.wraps(function)
    def later(*args, **kwargs):
      time.sleep(seconds)
      return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, later)

  slow(data, "_merge_twins", 0.6)  # in the loader's two threads
  slow(checkpoints.RunCheckpoints, "save", 0.3)
  slow(logs.ScalarLog, "write", 0.05)
  before = data.train_dataset, checkpoints.RunCheckpoints.save, training.save_model, logs.ScalarLog.write
  monkeypatch.setattr(training, "_LOG_EVERY", 2)
  with tiny_branch():
    plan = Plan(warm=4, counted=14, save_every=8)
    around = benchmark_train.watch_fit(tiny_config(), str(prepared_dataset), plan=plan)
  assert around.data.step > 0.1 and 0.3 < around.idle < 1
  assert around.saving.save > 0.3 and around.saving.once > 0.3
  assert 0.02 < around.logging.step < 0.3 and around.logging.once > 0.05
  assert around.saving.step < around.saving.save
  after = data.train_dataset, checkpoints.RunCheckpoints.save, training.save_model, logs.ScalarLog.write
  assert after == before


def test_the_table_says_what_is_a_part_of_what(monkeypatch):
  nothing = Costs(step=0.0, save=0.0, validation=0.0, once=0.0)
  around = Around(
    step_s=0.5,
    data=dataclasses.replace(nothing, step=0.01),
    saving=dataclasses.replace(nothing, save=0.5, once=2.0),
    logging=dataclasses.replace(nothing, step=0.001),
    idle=0.03,
  )
  monkeypatch.setattr(benchmark_train, "in_own_process", lambda function: around)
  rows = benchmark_train.around_rows(
    tiny_config(steps=1000, save_every=100),
    "",
    alone_s=0.4,
    row=functools.partial(benchmark._row_of, device="cpu"),
    share_row=lambda case, share, limit: benchmark.ShareRow("train", case, share, limit, "cpu", 2),
  )
  step, *shares = rows
  assert (step.ours_s, step.reference_s, step.ratio) == pytest.approx((0.5, 0.4, 1.25))
  assert [row.ours_share for row in shares] == pytest.approx([0.03, 0.02, 7 / 500, 20 / 500, 0.002])
  assert [row.limit_share for row in shares] == [0.05, None, 0.02, None, 0.01]
  assert "2.00%" in benchmark.table(rows) and "1.40%" in benchmark.table(rows)


class FakeWorker(concurrent.futures.Executor):
  def submit(self, function, *args):
    future = concurrent.futures.Future()
    future.set_result(None)
    return future


def test_an_example_is_timed_on_more_and_more_devices(monkeypatch):
  monkeypatch.setattr(benchmark_train, "_process", FakeWorker)
  rows = benchmark_train.scaling_rows(
    make=range,
    in_turns=lambda *calls, repeats: [0.2, 0.4, 1.0, 1.6][: len(calls)],
    row=functools.partial(benchmark._row_of, device="cpu"),
    repeats=1,
  )
  assert [row.ours_s for row in rows] == pytest.approx([0.8, 0.8, 1.0, 0.8])
  assert [row.ratio for row in rows[1:]] == pytest.approx([1.0, 1.25, 1.0])
  assert [row.limit_s for row in rows[1:]] == pytest.approx([0.88] * 3)


def test_virtual_devices_take_the_place_of_others_and_of_nothing_else():
  given = "--xla_a=1 --xla_force_host_platform_device_count=3 --xla_b=-c"
  wanted = "--xla_a=1 --xla_b=-c --xla_force_host_platform_device_count=4"
  assert benchmark_train.with_virtual_devices(given, 4) == wanted
  assert benchmark_train.with_virtual_devices("", 2) == "--xla_force_host_platform_device_count=2"


def test_a_process_of_the_benchmark_has_the_devices_that_it_should():
  with benchmark_train._process() as worker:
    worker.submit(benchmark_train._hold_steps, 2, range).result()
    assert "device_count=2" in worker.submit(os.getenv, "XLA_FLAGS").result()
    # Once JAX has looked there are no others.
    with pytest.raises(RuntimeError, match="Asked for 3 virtual devices, got 2"):
      worker.submit(benchmark_train._hold_steps, 3, range).result()


def test_memory_is_the_most_that_was_held():
  held = np.ones(2**24)
  with_it = benchmark_train.peak_bytes()
  del held
  # Counted by the kernel to some pages.
  assert with_it >= 2**27 and benchmark_train.peak_bytes() > 0.99 * with_it


def test_memory_is_that_of_a_process_of_its_own():
  small = benchmark_train.in_own_process(benchmark_train.peak_bytes)
  held = np.ones((small + 2**29) // 8)
  assert benchmark_train.in_own_process(benchmark_train.peak_bytes) < held.nbytes


def test_steps_are_taken_with_made_numbers_to_see_what_they_hold():
  with tiny_branch():
    needed, peak = benchmark_train.peak_of_steps(tiny_config(), 8)
  assert 1e-4 < needed < peak < 20


def test_too_little_memory_is_said_and_no_peak_is_made_up(monkeypatch, capsys):
  def rows_of(*figures):
    monkeypatch.setattr(benchmark_train, "in_own_process", lambda function: figures)
    return benchmark_train.memory_rows(memory_row=lambda case, gigabytes: gigabytes)

  assert rows_of(3.0, 4.0) == [3.0, 4.0] * 2 and not capsys.readouterr().err
  assert rows_of(30.0, None) == [30.0] * 2
  assert "too little memory to take a training step of the preset full, batch 4" in capsys.readouterr().err
