import dataclasses
import functools

import numpy as np
import pytest
from tiny import CALIBRATION, tiny_branch, write_model

from deepscan_jax import checkpoints, data, evaluation, metrics
from deepscan_jax.config import DataConfig
from deepscan_jax.inference import Detector, load_detector

CONFIG = DataConfig(batch_size=4)


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


def brightness(batch: dict[str, np.ndarray]) -> np.ndarray:
  """A score that can be computed by hand."""
  return batch["crops"].mean(axis=(1, 2, 3, 4))


def test_scores_of_pairs_are_those_of_their_rows(prepared_dataset):
  source = data.ExampleSource(["real_only"], "validation", prepared_dataset)
  pairs = data.HeldOutPairs(source, CONFIG)
  scores = evaluation.score(brightness, pairs, limit=0, batch_size=6)
  expected = np.concatenate([brightness(pairs[i]) for i in range(len(pairs))])
  np.testing.assert_allclose(scores.logits, expected)
  np.testing.assert_array_equal(scores.labels, [0, 1] * len(pairs))
  assert list(scores.source[::2]) == [source[i]["source"] for i in range(len(source))]
  np.testing.assert_array_equal(scores.group[::2], scores.group[1::2])
  assert scores.paired
  summary = scores.summary()
  assert summary["auc"] == metrics.auc(scores.labels, scores.logits)
  assert summary["paired_accuracy"] == np.mean(scores.fake > scores.real)


def test_scores_do_not_depend_on_the_batch_size(prepared_dataset):
  source = data.ExampleSource(["real_only"], "validation", prepared_dataset)
  score = functools.partial(evaluation.score, brightness, data.HeldOutExamples(source), limit=0)
  few, many = score(batch_size=1), score(batch_size=32)
  np.testing.assert_array_equal(few.logits, many.logits)
  np.testing.assert_array_equal(few.group, many.group)
  assert not many.paired and "paired_accuracy" not in many.summary()


def test_scores_can_be_joined_and_chosen_from():
  def scores(logits: list[float], name: str) -> evaluation.Scores:
    names = np.array([name] * 2)
    return evaluation.Scores(
      np.array([0, 1]), np.array(logits), names, names, np.array(["face"] * 2), np.ones(2, bool), True
    )

  both = scores([0.1, 0.9], "a") + scores([0.5, 0.4], "b")
  assert both.summary() == {"auc": 0.75, "accuracy": 0.5, "paired_accuracy": 0.5}
  np.testing.assert_array_equal(both.rows(both.source == "b").logits, [0.5, 0.4])


def test_a_model_is_calibrated_on_validation_and_measured_on_test(prepared_dataset, tmp_path):
  folder = write_model(tmp_path / "best", calibration=None, sound_calibration=CALIBRATION)
  written = evaluation.calibrate_model(folder, data_dir=prepared_dataset, false_positive_rate=0.25)
  assert list(written) == ["calibration"]  # there is no sound in the data
  facts = checkpoints.read_model(folder)
  assert facts["calibration"] == written["calibration"] and facts["sound_calibration"] == dataclasses.asdict(
    CALIBRATION
  )
  detector = load_detector(folder)
  untouched = evaluation.held_out_scores(detector, data_dir=prepared_dataset, split="validation")["untouched"]
  for source in set(untouched.source):
    real = untouched.rows(untouched.source == source).real
    assert metrics.false_positive_rate(real, threshold=written["calibration"]["manipulated"]) <= 0.25
  figures = evaluation.measure_model(detector, data_dir=prepared_dataset)
  assert figures["split"] == "test" and figures["model"]["sha256"] == detector.metadata["sha256"]
  assert set(figures["pairs"]) == {"plain", "degraded", "all"}
  assert figures["pairs"]["all"]["count"] == 2 * figures["pairs"]["plain"]["count"]
  counts = {source: row["count"] for source, row in figures["false_alarms"].items()}
  assert set(counts) == {"street", "studio"}
  for row in figures["false_alarms"].values():
    assert row["interval"][0] <= row["rate"] <= row["interval"][1]


def test_an_uncalibrated_model_judges_as_the_network_does(prepared_dataset, tmp_path):
  """held_out_scores goes through Detector.judge, which pads and splits batches: the rows must agree."""
  detector = Detector(write_model(tmp_path / "best", calibration=None), calibrated=False)
  scores = evaluation.held_out_scores(detector, data_dir=prepared_dataset, split="validation")
  source = data.ExampleSource(["real_only"], "validation", prepared_dataset)
  example = data.HeldOutExamples(source)[0]
  alone = detector.judge({key: example[key] for key in ("crops", "crop_mask")}).logits
  np.testing.assert_allclose(scores["untouched"].logits[0], alone[0], atol=1e-5)
