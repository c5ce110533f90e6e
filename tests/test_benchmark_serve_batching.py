"""The benchmark of the service's batches: its pictures, its clients, and what it makes of their times."""

import threading
import time
from pathlib import Path

import cv2
import pytest

from deepscan_jax.rooms import import_room

benchmark = import_room("launch.benchmark_serve_batching")


def test_pictures_have_the_size_of_their_kind(tmp_path):
  files = benchmark.make_pictures(tmp_path, "small")
  assert len({path.read_bytes() for path in files}) == len(files) == 16
  assert cv2.imread(str(files[3])).shape == (224, 224, 3)


def test_so_many_clients_ask_for_every_file_in_turn():
  files, asked, four = [Path(name) for name in "abc"], [], threading.Barrier(4, timeout=60)

  def ask(path):
    four.wait()  # fewer at a time would wait for ever
    asked.append(path)
    time.sleep(0.02)
    return float(ord(path.name))

  done = benchmark.load(files, ask, requests=12, clients=4)
  assert sorted(asked) == sorted(files * 4)
  assert done.scores == {path: float(ord(path.name)) for path in files}
  assert len(done.latencies_s) == 12 and min(done.latencies_s) >= 0.02
  assert done.seconds >= 0.06 and done.per_second == pytest.approx(12 / done.seconds)


def test_a_client_that_fails_is_heard_of():
  with pytest.raises(ZeroDivisionError):
    benchmark.load([Path("a")], lambda path: 1 / 0, requests=3, clients=2)


def test_processor_seconds_grow_with_work():
  before = benchmark.processor_seconds()
  ends = time.thread_time() + 0.1
  while time.thread_time() < ends:
    pass
  assert 0.1 <= benchmark.processor_seconds() - before < 30


def test_rows_hold_the_fastest_turns_and_the_largest_difference():
  a, b = Path("a"), Path("b")
  served = [
    benchmark.Load(2.0, (0.1, 0.3), 1.0, {a: 0.5, b: 0.25}),
    benchmark.Load(1.0, (0.1, 0.2), 1.2, {a: 0.5, b: 0.26}),
  ]
  plain = [benchmark.Load(4.0, (2.0, 2.0), 2.0, {a: 0.5, b: 0.25})]
  rows = dict(
    benchmark.rows_of(
      "small",
      served,
      plain,
      clients=32,
      rate_row=lambda case, rate, least_per_s: (case, (rate, least_per_s)),
      row=lambda case, seconds, limit_s: (case, (seconds, limit_s)),
    )
  )
  assert rows["small: one at a time"] == (0.5, None)
  assert rows["small: engine, 32 clients (4.00 times)"] == (2.0, 1.5)
  assert rows["small: processor seconds, engine"] == (0.5, None)
  assert rows["small: processor seconds, one at a time"] == (1.0, None)
  assert rows["small: engine, p50"] == (pytest.approx(0.15), None)
  apart, most = rows["small: scores differ by at most (no seconds)"]
  assert apart == pytest.approx(0.01) and most == 1e-5
