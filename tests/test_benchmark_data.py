"""The benchmark of loading: both sides make the same of the same examples, and its table says what it is."""

import dataclasses
import functools

import numpy as np
import pytest

from deepscan_jax import data, faces
from deepscan_jax.config import load_preset
from deepscan_jax.launch import benchmark, benchmark_data

CONFIG = load_preset("testing")


def case(prepared_dataset, **changes) -> benchmark_data.Case:
  config = dataclasses.replace(CONFIG.data, batch_size=4)
  made = benchmark_data.Case("ours", "pairs", 0, config, str(prepared_dataset))
  return dataclasses.replace(made, **changes)


def first_batch(of: benchmark_data.Case) -> dict[str, np.ndarray]:
  batches = benchmark_data.batch_iterator(of)
  batch = {key: np.asarray(value) for key, value in next(batches).items()}
  batches.close()
  return batch


@pytest.mark.parametrize("work", ["cut", "pairs"])
def test_both_sides_make_batches_of_the_same_kind(prepared_dataset, work):
  pytest.importorskip("torch")
  ours, theirs = (first_batch(case(prepared_dataset, work=work, carrier=c)) for c in ("ours", "torch"))
  assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
    key: (value.shape, value.dtype) for key, value in theirs.items()
  }
  assert len(ours["crops"]) == 4
  if work == "pairs":
    np.testing.assert_array_equal(theirs["label"], [0, 1, 0, 1])
  else:
    source = data.ExampleSource(CONFIG.data.datasets, "train", str(prepared_dataset))
    plain = [faces.eval_crop(source[i]["faces"]) for i in range(len(source))]
    for batch in (ours, theirs):
      assert all(any(np.array_equal(crop, p) for p in plain) for crop in batch["crops"])


class Counter:
  """An endless iterator that says how often it was asked."""

  asked = 0

  def __next__(self) -> int:
    self.asked += 1
    return self.asked


def test_what_was_made_ahead_is_not_timed(monkeypatch):
  drawn = Counter()
  monkeypatch.setattr(benchmark_data, "_held", [drawn])
  monkeypatch.setattr(benchmark_data.time, "perf_counter", lambda: 10.0 * drawn.asked)
  assert benchmark_data._seconds() == 10.0 * benchmark_data.TIMED
  assert drawn.asked == benchmark_data.DRAWN_OFF + benchmark_data.TIMED


def test_memory_is_measured_when_all_is_settled_and_at_the_end(monkeypatch):
  drawn = Counter()
  monkeypatch.setattr(benchmark_data, "_held", [drawn])
  measured = benchmark_data._memory(batches=250, measure=lambda pid: drawn.asked * 1e9)
  assert measured == (benchmark_data.SETTLED, 250)


def test_the_table_says_what_is_compared(monkeypatch):
  seconds = {("ours", "pairs"): 0.1, ("torch", "pairs"): 0.2, ("ours", "cut"): 0.03, ("torch", "cut"): 0.02}
  monkeypatch.setattr(
    benchmark_data, "batch_seconds", lambda cases, **_: [seconds[c.carrier, c.work] for c in cases]
  )
  monkeypatch.setattr(benchmark_data, "in_own_process", lambda *_: (0.5, 0.6))
  settings = {
    "workers": [0, 2],
    "batches": 300,
    "in_turns": None,
    "row": functools.partial(benchmark._row_of, device="cpu"),
    "rate_row": benchmark._rate_row,
    "memory_row": lambda name, gb, limit: benchmark.MemoryRow("data", name, gb, limit, "cpu", 2),
    "resident_bytes": None,
    "consumption": lambda: {"a small step": 40.0, "a large step": 20.0},
    "repeats": 1,
  }
  rows = benchmark_data.data_rows(CONFIG, "", with_torch=True, **settings)
  found = {row.case: row for row in rows}
  size = CONFIG.data.batch_size
  rate = found["pairs as in training, workers 2: pictures"]
  assert (rate.ours_per_s, rate.least_per_s) == (pytest.approx(10 * size), 20)
  whole = found["decode and cut, workers 0: 100 batches (reference: DataLoader)"]
  assert (whole.ours_s, whole.reference_s, whole.ratio) == pytest.approx((3, 2, 1.5))
  last = found["memory, workers 0, after 300"]
  assert last.ours_gb == 0.6 and last.limit_gb == pytest.approx(0.5 + benchmark_data.MOST_GROWTH_GB)
  assert "0.50 GB" in benchmark.table(rows) and "DataLoader" in benchmark.table(rows)
  alone = benchmark_data.data_rows(CONFIG, "", with_torch=False, **settings)
  assert len(alone) == len(rows) and not any("DataLoader" in row.case for row in alone)
