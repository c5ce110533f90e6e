"""Batches of many callers' rows: everyone gets his own, in turn, and nobody's fault is another's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deepscan_jax.serve.batching import Batcher, Closed, Network

FLAT = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}  # what an accelerator takes
LINEAR = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}  # what a CPU takes


class Recorder:
  """Doubles numbers; negative ones it refuses. Waits for `go` before each batch."""

  def __init__(self, *, costs=FLAT, shared=True):
    self.batches, self.go = [], threading.Semaphore(0)
    self.network = Network("double", self.run, sizes=tuple(costs), shared=shared, costs=costs)

  def run(self, batch):
    assert self.go.acquire(timeout=20)
    x = batch["x"]
    self.batches.append(x[:, 0].tolist())
    if x.min() < 0:
      raise ArithmeticError("negative")
    return {"twice": 2 * x, "sum": x.sum(axis=1)}

  def let(self, count=1000):
    for _ in range(count):
      self.go.release()


def rows(*values):
  return {"x": np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)}


@pytest.fixture
def pool():
  with ThreadPoolExecutor(64) as made:
    yield made


def handed_in(pool, batcher, network, *each):
  """Futures of callers that hand in one after the other, once all wait; the first is being run already."""
  calls = []
  for number, values in enumerate(each):
    calls.append(pool.submit(batcher.run, network, rows(*values)))
    while network.callers <= number:
      time.sleep(0.001)
    time.sleep(0.01)
  return calls


def test_everyone_gets_the_answers_to_his_own_rows(pool):
  recorder, batcher = Recorder(), Batcher(threads=2)
  recorder.let()
  counts = [1 + i * 7 % 20 for i in range(60)]
  values = [[100 * i + j for j in range(count)] for i, count in enumerate(counts)]
  for own, answer in zip(
    values, pool.map(lambda v: batcher.run(recorder.network, rows(*v)), values), strict=True
  ):
    np.testing.assert_array_equal(answer["twice"], 2 * rows(*own)["x"])
    np.testing.assert_array_equal(answer["sum"], 3 * np.array(own, np.float32))
  stats = batcher.stats()
  assert stats["rows"] == sum(counts) and stats["waiting_rows"] == 0
  assert stats["padded_rows"] == sum(map(len, recorder.batches)) - sum(counts)
  assert sum(stats["batches"].values()) == len(recorder.batches)
  batcher.close()


def test_rows_that_wait_share_a_batch_of_a_compiled_size(pool):
  recorder, batcher = Recorder(), Batcher()
  calls = handed_in(pool, batcher, recorder.network, [1], [2], [3, 4], [5])
  recorder.let()
  assert [call.result()["twice"][0, 0] for call in calls] == [2, 4, 6, 10]
  assert recorder.batches[0] == [1] and sorted(recorder.batches[1]) == [2, 3, 4, 5]
  batcher.close()


def test_a_long_caller_does_not_keep_short_ones_waiting(pool):
  recorder, batcher = Recorder(), Batcher()
  calls = handed_in(pool, batcher, recorder.network, [0], range(1000, 1300), [1], [2], [3])
  recorder.let(2)
  assert [calls[i].result(timeout=20)["twice"][0, 0] for i in (2, 3, 4)] == [2, 4, 6]
  assert not calls[1].done() and len(recorder.batches[1]) == 8
  recorder.let()
  np.testing.assert_array_equal(calls[1].result()["twice"][:, 0], 2 * np.arange(1000, 1300))
  batcher.close()


def test_networks_take_turns(pool):
  one, other, batcher = Recorder(), Recorder(), Batcher()
  handed_in(pool, batcher, one.network, [0], range(100))
  call = handed_in(pool, batcher, other.network, [7])[0]
  other.let()
  one.let(2)
  assert call.result(timeout=20)["sum"][0] == 21 and len(one.batches) <= 2
  one.let()
  batcher.close()


def test_a_failure_is_that_of_its_caller_alone(pool):
  recorder, batcher = Recorder(), Batcher()
  calls = handed_in(pool, batcher, recorder.network, [0], [1], [-1], [2, 3], range(-20, 0))
  calls.append(pool.submit(batcher.run, recorder.network, {"x": np.zeros((1, 4), np.float32)}))
  while recorder.network.callers < 6:
    time.sleep(0.001)
  recorder.let()
  assert [calls[i].result()["sum"].tolist() for i in (0, 1, 3)] == [[0], [3], [6, 9]]
  for i in (2, 4):
    with pytest.raises(ArithmeticError):
      calls[i].result()
  calls[5].result()  # another shape is no fault where it is alone
  assert batcher.stats()["waiting_rows"] == 0 and recorder.network.callers == 0
  batcher.close()


def test_where_rows_cost_the_same_nobody_waits_for_another(pool):
  recorder = Recorder(costs=LINEAR)
  recorder.let()
  batcher = Batcher(max_wait_s=30.0, callers=lambda: 9)
  started = time.monotonic()
  batcher.run(recorder.network, rows(1))
  assert time.monotonic() - started < 15
  batcher.close()


@pytest.mark.parametrize(("others", "waits"), [(0, False), (1, True)])
def test_where_batches_pay_rows_wait_for_those_that_are_coming(pool, others, waits):
  recorder = Recorder()
  recorder.let()
  batcher = Batcher(max_wait_s=0.3, callers=lambda: recorder.network.callers + others)
  started = time.monotonic()
  batcher.run(recorder.network, rows(1))
  assert (time.monotonic() - started >= 0.3) == waits
  batcher.close()


@pytest.mark.parametrize(
  ("costs", "count", "size"),
  [
    (FLAT, 1, 1),
    (FLAT, 5, 8),
    (LINEAR, 1, 1),
    (LINEAR, 3, 2),
    (LINEAR, 7, 4),
    (LINEAR, 8, 8),
    ({1: 1.0, 8: 12.0}, 8, 1),
    ({1: 1.0, 8: 5.0}, 4, 1),
    ({1: 1.0, 8: 5.0}, 6, 8),
  ],
)
def test_the_size_begins_the_quickest_way_through_what_waits(costs, count, size):
  assert Network("x", lambda batch: batch, sizes=costs, costs=costs).size_for(count) == size


def test_rows_that_are_not_shared_run_as_a_detector_runs_them(pool):
  recorder, batcher = Recorder(costs={1: 1.0, 8: 1.0}, shared=False), Batcher()
  calls = handed_in(pool, batcher, recorder.network, [0], range(9), [5])
  recorder.let()
  assert calls[1].result()["sum"].tolist() == [3 * i for i in range(9)]
  assert calls[2].result()["sum"].tolist() == [15]
  assert sorted(map(len, recorder.batches)) == [1, 1, 8, 8]
  batcher.close()


def test_costs_are_measured_for_every_size():
  seen = []

  def run(batch):
    seen.append(len(batch["x"]))
    time.sleep(0.002 * len(batch["x"]))
    return batch["x"]

  network = Network("x", run, sizes=(4, 1), costs=None)
  network.measure({"x": ((3,), np.dtype(np.uint8))})
  assert set(seen) == {1, 4} and 0.002 <= network.costs[1] < network.costs[4]


def test_closing_ends_what_waits(pool):
  recorder, batcher = Recorder(), Batcher()
  calls = handed_in(pool, batcher, recorder.network, [0], [1])
  closing = pool.submit(batcher.close)
  with pytest.raises(Closed):
    calls[1].result(timeout=20)
  recorder.let()
  assert calls[0].result()["sum"].tolist() == [0]
  closing.result(timeout=20)
  with pytest.raises(Closed):
    batcher.run(recorder.network, rows(1))
