"""The benchmark of evaluations: every row is there, and what is scored are the videos that were asked for."""

import functools

import numpy as np
import pytest
from tiny import tiny_branch, write_model

from deepscan_jax import card, data, inference, scoring
from deepscan_jax.launch import benchmark, benchmark_evaluate


@pytest.fixture
def detector(tmp_path):
  with tiny_branch():
    yield inference.load_detector(write_model(tmp_path / "best"))


def test_every_row_is_told_with_its_promise(detector, prepared_dataset, monkeypatch):
  monkeypatch.setattr(inference, "load_detector", lambda: detector)
  monkeypatch.setattr(benchmark_evaluate, "_PART_VIDEOS", 2)
  rows = benchmark_evaluate.evaluate_rows(
    prepared_dataset,
    dataset="real_only",
    videos=3,
    frames=4,
    statistics_rows=640,
    draws=20,
    row=functools.partial(benchmark._row, "evaluate"),
    rate_row=functools.partial(benchmark._rate_row, "evaluate"),
  )
  figures, whole, scored, alone, ours = rows
  assert figures.limit_s == whole.limit_s == benchmark_evaluate.STATISTICS_S
  assert min(figures.ours_s, whole.ours_s, scored.ours_s, scored.reference_s) > 0
  assert scored.limit_s == pytest.approx(scored.reference_s / 0.9)
  assert ours.least_per_s == pytest.approx(0.9 * alone.ours_per_s)
  assert ours.ours_per_s * scored.ours_s == pytest.approx(12)
  lines = benchmark.table(rows).splitlines()
  assert len(lines) == 7 and "640 windows of 20 videos: a card" in lines[2] and "/s" in lines[4]


def test_examples_become_videos_of_both_classes(detector, prepared_dataset):
  config = detector.config.data
  untouched = data.held_out(config, "train", data_dir=prepared_dataset, inputs=detector.face_inputs)
  source = benchmark_evaluate.Videos(untouched.source, 4, 6, 5)
  held_out = data.HeldOutExamples(source, untouched.window)
  rows, _ = scoring._score_held_out(detector, held_out, dataset="made", condition="untouched", seconds=[])
  assert len(rows["window"]) == 30 and len(rows["video"]) == 6
  assert rows["video"].label.tolist() == [0, 1] * 3
  assert rows["video"].file[0] == "made:made/4.mp4"


def test_made_scores_have_figures_and_breakdowns():
  rows = benchmark_evaluate.made_scores(1000, each=10)
  found = card.figures_of(rows, draws=20)
  assert found["count"]["groups"] == 100 and 0.6 < found["auc"]["value"] < 0.9
  assert len(np.unique(rows.id)) == 1000 and set(rows.method) == {"", "swap", "reenactment"}
