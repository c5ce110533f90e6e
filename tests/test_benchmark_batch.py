import json
import random
import shutil

from deepscan_jax.launch import benchmark, benchmark_batch
from deepscan_jax.serve import batch


def test_a_batch_that_is_killed_loses_nothing_and_answers_nothing_twice(tmp_path):
  told = []
  found = benchmark_batch.killed_batch(
    tmp_path, kills=3, files=60, workers=2, rng=random.Random(3), tell=told.append
  )
  assert (found.kills, found.lost, found.twice, found.wrong) == (3, 0, 0, 0)
  # One of a worker is judged when the kill comes; on a busy machine its answer to another is not written yet.
  assert found.judged_again <= 3 * 2 * batch.AHEAD and found.runs == 4 and len(told) == 3
  # What the figures are made of shows when it is otherwise.
  report = tmp_path / "report.jsonl"
  rows = report.read_text().splitlines()
  wrong = json.dumps({**json.loads(rows[5]), "file": {"sha256": "00"}})
  report.write_text("\n".join([*rows[1:5], wrong, *rows[6:], rows[7]]) + "\n")
  shutil.copy(tmp_path / "seen", tmp_path / "seen2")
  told = benchmark_batch._outcome(
    tmp_path, tmp_path / "media", tmp_path / "seen2", report, kills=3, early=0, runs=4
  )
  assert (told.lost, told.twice, told.wrong) == (1, 1, 1)


def test_rows_say_what_was_promised(monkeypatch):
  outcome = benchmark_batch.Outcome(kills=2, early=1, lost=3, twice=4, wrong=5, judged_again=6, runs=9)
  monkeypatch.setattr(benchmark_batch, "killed_batch", lambda folder, **asked: outcome)
  rows = benchmark_batch.batch_rows(
    kills=2,
    files=9,
    workers=2,
    seed=0,
    row=lambda case, count, promised: benchmark.CountRow("batch", case, count, promised, "cpu", 2),
    tell=print,
  )
  assert [(row.count, row.promised) for row in rows] == [
    (2, 2),
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 2 * 2 * batch.AHEAD),
    (1, None),
  ]
