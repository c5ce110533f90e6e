import dataclasses
import json

import face_media
import media_files
import numpy as np
import pytest
from tiny import CALIBRATION, TinyBranch, tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints, examples, inference, media
from deepscan_jax.config import override
from deepscan_jax.models.detector import BRANCHES
from deepscan_jax.verdict import LIKELY_AUTHENTIC, LIKELY_MANIPULATED, NOT_APPLICABLE


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp("model") / "best")


@pytest.fixture(scope="module")
def detector(model):
  with tiny_branch():
    return inference.load_detector(model)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  return media_files.write_video(tmp_path_factory.mktemp("clip") / "pan.mp4", face_media.moving_portrait(10))


def without_timings(verdict) -> dict:
  return {key: value for key, value in verdict.to_dict().items() if key != "timings"}


def test_two_looks_at_one_file_give_the_same_answer(detector, clip):
  first, second = (detector.detect(clip, frames=4) for _ in range(2))
  assert json.dumps(without_timings(first)) == json.dumps(without_timings(second))
  assert first.timings.keys() >= {"decode_s", "faces_s", "model_s", "total_s"}
  assert first.file["name"] == "pan.mp4" and first.file["kind"] == "video" and len(first.file["sha256"]) == 64
  assert first.model == detector.metadata and len(first.model["sha256"]) == 64
  assert json.loads(json.dumps(first.to_dict())) == first.to_dict()


def test_the_score_of_a_clip_is_that_of_its_person(detector, clip):
  verdict = detector.detect(clip, frames=4)
  (person,) = verdict.people
  assert person.judged == len(person.sightings) == len(verdict.evidence) == 4
  assert verdict.deepfake_probability == person.deepfake_probability
  found = media.decode_clip(clip, plan=media.SamplingPlan(frame_count=4))
  (subject,) = examples.find_subjects(found)
  cut = examples.face_windows(subject, found, window=detector.window)
  cut = examples.stack([examples.model_inputs(e, window=detector.window) for e in cut])
  logits = detector.judge(cut).logits
  assert person.deepfake_probability == pytest.approx(float(CALIBRATION.probability(logits.mean())), abs=1e-5)
  for sighting, logit in zip(person.sightings, logits, strict=True):
    assert sighting.probability == pytest.approx(float(CALIBRATION.probability(logit)), abs=1e-5)
  branch = verdict.branches["tiny"]
  assert branch.weight == pytest.approx(1) and 0 < branch.probability < 1


def test_thresholds_decide_the_outcome(detector, clip):
  probability = detector.detect(clip, frames=2).deepfake_probability
  logit = (np.log(probability / (1 - probability)) - CALIBRATION.offset) / CALIBRATION.scale
  changed = detector.__class__.__new__(detector.__class__)
  for manipulated, inconclusive, outcome in (
    (logit - 0.01, logit - 0.02, LIKELY_MANIPULATED),
    (logit + 0.02, logit + 0.01, LIKELY_AUTHENTIC),
  ):
    changed.__dict__ = {
      **detector.__dict__,
      "calibration": dataclasses.replace(CALIBRATION, manipulated=manipulated, inconclusive=inconclusive),
    }
    verdict = changed.detect(clip, frames=2)
    assert verdict.outcome == outcome and verdict.is_deepfake == (outcome == LIKELY_MANIPULATED)
    assert [reason.code for reason in verdict.reasons] == ["blending_traces"] * (
      outcome == LIKELY_MANIPULATED
    )


def test_a_picture_without_a_face_is_not_judged(detector):
  verdict = detector.detect_images(face_media.no_face()[None])
  assert verdict.outcome == NOT_APPLICABLE and verdict.deepfake_probability is None
  assert [reason.code for reason in verdict.reasons] == ["no_face"]
  assert verdict.branches["tiny"].status == "absent" and verdict.people == ()
  assert verdict.to_dict()["is_deepfake"] is None


def test_a_face_that_is_too_small_is_seen_but_not_judged(detector):
  frame = np.full((128, 128, 3), 90, np.uint8)
  frame[40:88, 40:88] = face_media.portrait(side=48)
  verdict = detector.detect_images(frame[None])
  assert verdict.outcome == NOT_APPLICABLE and verdict.deepfake_probability is None
  (person,) = verdict.people
  assert "face_too_small" in person.sightings[0].reasons and person.deepfake_probability is None
  reason = next(reason for reason in verdict.reasons if reason.code == "face_too_small")
  assert "48 px are needed" in reason.message


def test_each_reason_of_the_gate_of_sound_has_a_sentence():
  for code in ("no_sound", "sound_too_short", "silent", "clipped", "no_speech"):
    assert inference._REASONS[code].endswith(".")


def test_sound_alone_is_not_judged(detector, tmp_path):
  verdict = detector.detect(media_files.sound(tmp_path / "a.wav"))
  assert verdict.outcome == NOT_APPLICABLE and verdict.deepfake_probability is None
  assert [reason.code for reason in verdict.reasons] == ["audio_not_supported"]


def test_two_people_have_a_score_each(detector):
  verdict = detector.detect_images(np.stack([face_media.two_people()] * 2))
  assert len(verdict.people) == 2 and {person.id for person in verdict.people} == {1, 2}
  high, low = verdict.people
  assert high.deepfake_probability > low.deepfake_probability
  assert verdict.deepfake_probability == high.deepfake_probability
  for person in verdict.people:
    left = {sighting.box[0] < 128 for sighting in person.sightings}
    assert len(person.sightings) == 2 and len(left) == 1


def test_people_of_a_picture_are_judged_by_their_own_faces(detector):
  """Each half alone gives the score that the person has beside the other."""
  both = detector.detect_images(face_media.two_people()[None])
  empty = np.zeros((128, 128, 3), np.uint8)
  left = np.concatenate([face_media.two_people()[:, :128], empty], axis=1)
  (alone,) = detector.detect_images(left[None]).people
  (beside,) = (person for person in both.people if person.sightings[0].box[0] < 128)
  assert beside.deepfake_probability == pytest.approx(alone.deepfake_probability, abs=5e-3)


@pytest.mark.parametrize(
  "images",
  [
    np.zeros((4, 4, 3), np.uint8),
    np.zeros((1, 4, 4, 3)),
    np.zeros((0, 4, 4, 3), np.uint8),
    np.zeros((1, 4, 4, 4), np.uint8),
  ],
)
def test_other_arrays_are_refused(detector, images):
  with pytest.raises(ValueError, match=r"Images must be uint8 \[picture, height, width, 3\], got"):
    detector.detect_images(images)


def crops(count: int, *, seed: int = 0) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  return {
    "crops": rng.integers(0, 256, (count, 1, 224, 224, 3), dtype=np.uint8),
    "crop_mask": np.ones((count, 1), bool),
  }


def test_a_crop_is_judged_on_its_own(detector):
  """Whatever stands beside it, and however many rows the batch is padded with."""
  alone = detector.judge(crops(1)).logits
  for count in (2, 3, 9):
    many = crops(count, seed=7)
    many["crops"][0] = crops(1)["crops"][0]
    judged = detector.judge(many)
    assert judged.logits.shape == (count,) and judged.region.shape == (count, 1, 14, 14)
    np.testing.assert_allclose(judged.logits[0], alone[0], atol=1e-5)


def test_more_crops_than_a_batch_holds_come_back_in_order(detector):
  many = crops(inference.BATCH_SIZES[-1] + 3)
  judged = detector.judge(many)
  last = {key: value[-3:] for key, value in many.items()}
  np.testing.assert_allclose(judged.logits[-3:], detector.judge(last).logits, atol=1e-5)
  assert judged.branch_logits["tiny"].shape == judged.branch_weights["tiny"].shape == (len(many["crops"]),)


def test_each_branch_has_its_own_weight(tmp_path):
  """Named in another order than that of the alphabet, in which jit returns them."""
  with pytest.MonkeyPatch.context() as patch:
    for name in ("spatial", "audio"):
      patch.setitem(
        BRANCHES, name, lambda config, axis_name, name=name: TinyBranch(config.features, name=name)
      )
    config = override(tiny_config(), 'model.branches=["spatial", "audio"]')
    folder = write_model(tmp_path / "two", config=override(config, "model.fusion=weighted"))
    judged = inference.load_detector(folder).judge(crops(2))
  np.testing.assert_allclose(judged.branch_weights["spatial"], 0.75, rtol=1e-6)
  np.testing.assert_allclose(judged.branch_weights["audio"], 0.25, rtol=1e-6)
  expected = 0.75 * judged.branch_logits["spatial"] + 0.25 * judged.branch_logits["audio"]
  np.testing.assert_allclose(judged.logits, expected, rtol=1e-5)


def test_a_model_without_calibration_is_refused(tmp_path):
  folder = write_model(tmp_path / "raw", calibration=None)
  with pytest.raises(checkpoints.CheckpointError, match=r"has no calibration; run `deepscan calibrate"):
    inference.load_detector(folder)
  assert inference.Detector(folder, calibrated=False).judge(crops(1)).logits.shape == (1,)


def test_a_model_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(checkpoints.CheckpointError, match="No model at"):
    inference.load_detector(tmp_path)
