import dataclasses
import functools

import face_media
import numpy as np
import pytest
from tiny import CALIBRATION, tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints, data, evaluation, metrics
from deepscan_jax.config import DataConfig, override
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


def test_a_video_scores_as_the_mean_of_its_examples():
  rng = np.random.default_rng(0)
  videos = np.array(["a", "a", "b", "c", "c", "c", "d", "a", "a", "b", "d"])
  labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
  # The voice of d is judged by itself.
  has_faces = np.array([True] * 10 + [False])
  logits = rng.normal(size=len(videos))
  columns = dict.fromkeys(("group", "source", "kind", "id"), videos)
  scores = evaluation.Scores(
    labels=labels, logits=logits, has_faces=has_faces, video=videos, paired=False, **columns
  )
  expected = {}
  for video, label, faces in sorted(set(zip(videos, labels, has_faces, strict=True))):
    own = (videos == video) & (labels == label) & (has_faces == faces)
    expected[video, label, faces] = logits[own].sum() / own.sum()
  found = scores.videos()
  np.testing.assert_allclose(
    sorted(zip(*found, strict=True)), sorted((label, logit) for (_, label, _), logit in expected.items())
  )
  wins = [
    (fake > real) + 0.5 * (fake == real)
    for (_, a, _), fake in expected.items()
    for (_, b, _), real in expected.items()
    if a == 1 and b == 0
  ]
  assert scores.summary()["video_auc"] == pytest.approx(np.mean(wins))
  right = [(logit >= 0) == label for (_, label, _), logit in expected.items()]
  assert scores.summary()["video_accuracy"] == pytest.approx(np.mean(right))


def test_twins_of_a_clip_are_a_video_and_pictures_are_one_each(prepared_dataset):
  def summary(split: str, *, degraded: bool) -> tuple[int, int]:
    held = data.held_out(CONFIG, split, data_dir=prepared_dataset, degraded=degraded)
    scores = evaluation.score(brightness, held, limit=0, batch_size=8)
    return scores, len(scores.videos()[0])

  scores, videos = summary("validation", degraded=False)
  assert videos == len(scores.labels)
  assert scores.summary()["video_auc"] == scores.summary()["auc"]
  again, _ = summary("validation", degraded=True)
  # Plain and degraded ones are two.
  assert len((scores + again).videos()[0]) == 2 * videos
  scores, videos = summary("test", degraded=False)
  clips = {name for name in scores.video if ".mp4" in name}
  assert len(clips) == 1 and videos == len(scores.labels) - 2 * (face_media.CLIP_SAMPLES - 1)


def test_a_model_is_evaluated_by_its_folder_or_loaded(prepared_dataset, tmp_path):
  folder = write_model(tmp_path / "best")
  by_folder = evaluation.evaluate(folder, data_dir=prepared_dataset)
  assert by_folder == evaluation.evaluate(load_detector(folder), data_dir=prepared_dataset)
  assert by_folder["split"] == "test" and set(by_folder["pairs"]) == {"plain", "degraded", "all"}
  with pytest.raises(ValueError, match="selected and calibrated with the validation split of real_only"):
    evaluation.evaluate(folder, data_dir=prepared_dataset, split="validation")


def test_scores_can_be_joined_and_chosen_from():
  def scores(logits: list[float], name: str) -> evaluation.Scores:
    names = np.array([name] * 2)
    return evaluation.Scores(
      np.array([0, 1]), np.array(logits), names, names, np.array(["face"] * 2), np.ones(2, bool), True
    )

  both = scores([0.1, 0.9], "a") + scores([0.5, 0.4], "b")
  figures = {"auc": 0.75, "accuracy": 0.5, "paired_accuracy": 0.5}
  # Of files that are not known, each example is one.
  assert both.summary() == figures | {"video_auc": 0.75, "video_accuracy": 0.5}
  np.testing.assert_array_equal(both.rows(both.source == "b").logits, [0.5, 0.4])


def test_a_model_is_calibrated_on_validation_and_measured_on_test(prepared_dataset, tmp_path):
  folder = write_model(tmp_path / "best", calibration=None)
  written = evaluation.calibrate_model(folder, data_dir=prepared_dataset, false_positive_rate=0.25)
  assert list(written) == ["calibration"]  # there is no sound in the data
  assert checkpoints.read_model(folder)["calibration"] == written["calibration"]
  detector = load_detector(folder)
  untouched = evaluation.held_out_scores(detector, data_dir=prepared_dataset, split="validation")["untouched"]
  for source in set(untouched.source):
    real = untouched.rows(untouched.source == source).real
    assert metrics.false_positive_rate(real, threshold=written["calibration"]["manipulated"]) <= 0.25
  assert detector.calibration.rates.real_groups == len(set(untouched.group))
  # Another way to a probability changes no threshold of logits, and is read back with the model.
  again = evaluation.calibrate_model(
    folder, data_dir=prepared_dataset, false_positive_rate=0.25, method="isotonic"
  )
  curved = load_detector(folder).calibration
  assert curved.method == "isotonic" and curved.to_dict() == again["calibration"]
  assert curved.manipulated == detector.calibration.manipulated
  detector = load_detector(folder)
  figures = evaluation.measure_model(detector, data_dir=prepared_dataset)
  assert figures["split"] == "test" and figures["model"]["sha256"] == detector.metadata["sha256"]
  assert set(figures["pairs"]) == {"plain", "degraded", "all"}
  assert figures["pairs"]["all"]["count"] == 2 * figures["pairs"]["plain"]["count"]
  counts = {source: row["count"] for source, row in figures["false_alarms"].items()}
  assert set(counts) == {"street", "studio"}
  for row in figures["false_alarms"].values():
    assert row["interval"][0] <= row["rate"] <= row["interval"][1]


def of_both_kinds(faces: list[int], sound: list[int]) -> dict[str, evaluation.Scores]:
  """Scores of examples with faces and of sound alone, under such labels."""
  labels, has_faces = np.array(faces + sound), np.array([True] * len(faces) + [False] * len(sound))
  names = np.arange(len(labels)).astype(str)
  logits = labels + np.random.default_rng(0).normal(size=len(labels))
  scores = evaluation.Scores(labels, logits, names, np.full(len(labels), "here"), names, has_faces, False)
  return {"untouched": scores, "all": scores}


def test_a_source_of_fakes_alone_has_no_false_alarms(tmp_path):
  scores = of_both_kinds([0, 0, 0, 0, 1, 1], [])
  source = np.where(scores["all"].labels == 1, "generator", "camera")
  both = {name: dataclasses.replace(s, source=source) for name, s in scores.items()}
  detector = load_detector(write_model(tmp_path / "best"))
  assert set(evaluation.measure_scores(both, detector, split="test")["false_alarms"]) == {"camera"}


def test_a_part_without_both_classes_keeps_its_calibration(tmp_path, caplog):
  folder = write_model(tmp_path / "best", sound_calibration=CALIBRATION)
  before = checkpoints.read_model(folder)
  calibrated = functools.partial(evaluation.calibrate_model, folder, data_dir="nowhere")
  written = calibrated(scores=of_both_kinds([0, 1] * 20, [0] * 3))
  after = checkpoints.read_model(folder)
  assert list(written) == ["calibration"] and after["calibration"] == written["calibration"]
  assert after["calibration"] != before["calibration"]
  assert after["sound_calibration"] == before["sound_calibration"]
  assert "of sound alone the validation split holds 3 real and 0 fake" in caplog.text
  calibrated(scores=of_both_kinds([1] * 4, [0, 1] * 20))
  both = checkpoints.read_model(folder)
  assert both["calibration"] == after["calibration"]
  assert both["sound_calibration"] != after["sound_calibration"]
  message = (
    r"of examples with faces the validation split holds 0 real and 2 fake, and of sound alone .* 1 real"
  )
  with pytest.raises(ValueError, match=message):
    calibrated(scores=of_both_kinds([1] * 2, [0]))
  assert checkpoints.read_model(folder) == both
  caplog.clear()
  # Of what there is nothing, nothing is said.
  assert list(calibrated(scores=of_both_kinds([], [0, 1] * 20))) == ["sound_calibration"]
  assert not caplog.records


def test_an_uncalibrated_model_judges_as_the_network_does(prepared_dataset, tmp_path):
  """held_out_scores goes through Detector.judge, which pads and splits batches: the rows must agree."""
  detector = Detector(write_model(tmp_path / "best", calibration=None), calibrated=False)
  scores = evaluation.held_out_scores(detector, data_dir=prepared_dataset, split="validation")
  source = data.ExampleSource(["real_only"], "validation", prepared_dataset)
  example = data.HeldOutExamples(source)[0]
  alone = detector.judge({key: example[key] for key in ("crops", "crop_mask")}).logits
  np.testing.assert_allclose(scores["untouched"].logits[0], alone[0], atol=1e-5)


def test_a_model_that_hears_is_given_no_silence_of_pictures(prepared_dataset, tmp_path):
  config = override(tiny_config(), 'model.branches=["tiny", "tiny_voice"]')
  detector = Detector(write_model(tmp_path / "both", sound_calibration=CALIBRATION, config=config))
  assert "waveform" in detector.inputs
  for degraded in (None, False):
    held = evaluation.held_out(
      detector, detector.config.data, "validation", data_dir=prepared_dataset, degraded=degraded
    )
    assert held.source.inputs == ("crops", "crop_mask") and "waveform" not in held[0]
    whole = data.held_out(
      detector.config.data, "validation", data_dir=prepared_dataset, inputs=detector.inputs, degraded=degraded
    )
    # Nothing else about it is changed, and neither is what is said of it.
    np.testing.assert_array_equal(held[1]["crops"], whole[1]["crops"])
    np.testing.assert_allclose(
      detector.judge_held(held[1]).logits, detector.judge(whole[1]).logits, atol=1e-5
    )
