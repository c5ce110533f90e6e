"""The benchmark of the generator of pairs: every case runs, and its table says what is promised."""

import cv2
import numpy as np
import pytest

from deepscan_jax.launch import benchmark, benchmark_pairs


@pytest.fixture
def once(monkeypatch):
  monkeypatch.setattr(benchmark_pairs, "WINDOW_FRAMES", 2)
  monkeypatch.setattr(benchmark_pairs, "PAIRS", 2)


def test_every_case_is_counted_in_one_thread(once):
  threads, seen = cv2.getNumThreads(), []

  def in_turns(*calls, repeats, clock):
    for call in calls:
      call()
      seen.append(cv2.getNumThreads())
    return [0.01] * len(calls)

  rows = benchmark_pairs.pair_rows(in_turns=in_turns, row=benchmark._rate_row, repeats=1)
  assert set(seen) == {1} and cv2.getNumThreads() == threads
  rates = {row.case: row.ours_per_s for row in rows}
  assert rates["self-blend at 256 px"] == pytest.approx(200)
  assert rates["windows of 2 frames: a moved still"] == pytest.approx(400)  # two faces
  assert sum(row.least_per_s is not None for row in rows) == 3
  lines = benchmark.table(rows).splitlines()
  assert "250/s" in lines[2] and lines[-1] == "cpu, 1 threads"


def test_one_of_the_faces_reaches_beyond_its_picture():
  (inside, points), (beyond, moved) = benchmark_pairs.sample_faces()
  assert inside.min(axis=-1)[:, 0].any() and not beyond[:, 0].any()
  np.testing.assert_allclose(points, moved, atol=1)
