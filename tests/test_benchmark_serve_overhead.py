"""The benchmark of the API alone: what it says of a machine that is slow now and then."""

import time

import pytest

from deepscan_jax.launch import benchmark_serve_overhead as overhead


def rows(asked, slow_times) -> list:
  def row(case: str, seconds: float, *, limit_s: float | None = None) -> tuple:
    return case, seconds, limit_s

  return overhead.late_rows(asked, slow_times, "API", row=row, limit_s=0.02)


def test_what_was_due_while_the_machine_was_slow_is_counted_beside_the_rest():
  asked = [(float(second), 0.5 if 40 <= second < 60 else 0.01) for second in range(100)]
  assert rows(asked, [(40.0, 49.0), (45.0, 59.5)]) == [
    ("API: half of them", 0.01, None),
    ("API: 99 of 100", 0.5, None),
    ("API, but 20% when the machine was slow: 99 of 100", 0.01, 0.02),
  ]
  # What is late at other times is not excused.
  assert rows(asked, [(0.0, 1.0)])[2][1:] == (0.5, 0.02)


def test_a_machine_that_was_never_slow_or_always():
  asked = [(float(second), 0.01) for second in range(100)]
  assert rows(asked, []) == [("API: half of them", 0.01, None), ("API: 99 of 100", 0.01, 0.02)]
  (_, case, seconds, limit_s) = (None, *rows(asked, [(-1.0, 100.0)])[1])
  assert (case, seconds, limit_s) == ("API, when the machine was slow: 99 of 100", 0.01, 0.02)


def test_the_machine_is_watched_from_the_beginning(monkeypatch):
  with overhead._watched_machine() as slow_times:
    pass
  assert all(start < end for start, end in slow_times)
  # With a bound that every piece of work is above, the block is covered from its first moment on.
  monkeypatch.setattr(overhead, "_SLOW", 0.0)
  with overhead._watched_machine() as slow_times:
    began = time.perf_counter()
    time.sleep(0.2)
    ended = time.perf_counter()
  assert slow_times[0][0] == pytest.approx(began, abs=0.1) and slow_times[-1][1] > ended
