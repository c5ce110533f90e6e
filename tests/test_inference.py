import dataclasses
import json

import face_media
import jax
import media_files
import numpy as np
import pytest
import voices
from tiny import CALIBRATION, TinyBranch, tiny_branch, tiny_config, write_model

from deepscan_jax import checkpoints, examples, faces, inference, media
from deepscan_jax.calibration import Calibration
from deepscan_jax.config import WindowConfig, override
from deepscan_jax.faces import align
from deepscan_jax.models import detector as networks
from deepscan_jax.models.audio import AudioBranch
from deepscan_jax.models.detector import BRANCHES
from deepscan_jax.verdict import INCONCLUSIVE, LIKELY_AUTHENTIC, LIKELY_MANIPULATED, NOT_APPLICABLE

OF_SOUND = Calibration(scale=0.8, offset=-0.2, inconclusive=-40.0, manipulated=40.0, false_positive_rate=0.1)
SECONDS = 5.3


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
  # What lies at the place of the evidence in its frame is what the model saw.
  for seen in verdict.evidence:
    frame = found.frames[int(np.abs(found.frame_times_s - seen.time_s).argmin())]
    again = align.warp(frame, align.invert(seen.place), size=faces.EVAL_SIZE)
    assert np.abs(again.astype(float) - seen.crop).mean() < 0.5


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
  assert "48 px are needed" in reason.message and "larger copy" in reason.remedy
  assert reason.facts["found_px"] < reason.facts["needed_px"] == 48


def test_sound_alone_is_not_judged(detector, tmp_path):
  verdict = detector.detect(media_files.sound(tmp_path / "a.wav"))
  assert verdict.outcome == NOT_APPLICABLE and verdict.deepfake_probability is None
  assert [reason.code for reason in verdict.reasons] == ["audio_not_supported"]


def model_of(*branches, frames=1, mouth_frames=0, seconds=2.0):
  window = WindowConfig(frames=frames, mouth_frames=mouth_frames, samples=round(seconds * voices.RATE_HZ))
  config = override(tiny_config(), f"model.branches={json.dumps(branches)}")
  return dataclasses.replace(config, data=dataclasses.replace(config.data, window=window))


def loaded(folder, *branches, calibration=CALIBRATION, sound_calibration=OF_SOUND, **window):
  config = model_of(*branches, **window)
  return inference.load_detector(
    write_model(folder, config=config, calibration=calibration, sound_calibration=sound_calibration)
  )


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
  """Judges single faces, and sound by itself."""
  with tiny_branch():
    return loaded(tmp_path_factory.mktemp("hearing") / "best", "tiny", "tiny_voice")


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
  """Judges sound alone."""
  with tiny_branch():
    return loaded(tmp_path_factory.mktemp("listener") / "best", "tiny_voice", calibration=None)


@pytest.fixture(scope="module")
def lip_reader(tmp_path_factory):
  """Judges faces and mouths over time with their sound, and sound by itself where there are none."""
  with tiny_branch():
    window = {"frames": 4, "mouth_frames": 25, "seconds": 1.0}
    return loaded(tmp_path_factory.mktemp("lips") / "best", "tiny", "tiny_voice", "tiny_lips", **window)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
  sound = voices.speech(seconds=SECONDS, seed=3)
  path = tmp_path_factory.mktemp("recording") / "voice.wav"
  return media_files.sound(path, sound, sample_rate_hz=voices.RATE_HZ)


@pytest.fixture(scope="module")
def talkie(tmp_path_factory):
  """A second and a half of a face, with a voice."""
  path, count = tmp_path_factory.mktemp("talkie") / "talk.mp4", 38
  sound = voices.speech(seconds=count / 25, seed=4)
  there = face_media.moving_portrait(10)
  frames = [there[abs(i % 18 - 9)] for i in range(count)]  # to and fro
  return media_files.write_video(path, frames, sound=sound, sound_rate_hz=voices.RATE_HZ)


def recalibrated(detector, **calibrations):
  """The same detector, reading its logits in another way."""
  changed = detector.__class__.__new__(detector.__class__)
  changed.__dict__ = {**detector.__dict__, **calibrations}
  return changed


def at_threshold(calibration, probability, outcome):
  """The calibration that gives a file of this probability that outcome, by a hair."""
  logit = (np.log(probability / (1 - probability)) - calibration.offset) / calibration.scale
  inconclusive, manipulated = {
    LIKELY_AUTHENTIC: (logit + 1e-3, logit + 2e-3),
    INCONCLUSIVE: (logit - 1e-3, logit + 1e-3),
    LIKELY_MANIPULATED: (logit - 2e-3, logit - 1e-3),
  }[outcome]
  return dataclasses.replace(calibration, inconclusive=inconclusive, manipulated=manipulated)


def test_a_sound_file_is_judged_by_what_the_network_says_of_its_windows(hearing, recording):
  verdict = hearing.detect(recording)
  clip = media.decode_clip(recording, plan=media.SamplingPlan(frame_count=1))
  windows = examples.sound_windows(clip, window=hearing.window, most=16)
  assert [round(float(w["start_s"]), 2) for w in windows] == [0.0, 1.65, 3.3]
  inputs = examples.stack(
    [examples.model_inputs(w, window=hearing.window, keys=hearing.inputs) for w in windows]
  )
  # The whole network, in which all that is no sound is absent.
  network = networks.Detector(hearing.config.model)
  variables = hearing._variables
  logits = np.asarray(jax.jit(lambda v, b: network.apply(v, b, train=False).logit)(variables, inputs))
  assert verdict.deepfake_probability == pytest.approx(float(OF_SOUND.probability(logits.mean())), abs=1e-5)
  assert verdict.decided_by == "sound" and verdict.judged == ("sound",)
  assert verdict.thresholds == verdict.sound.thresholds == OF_SOUND.thresholds
  assert verdict.sound.outcome == verdict.outcome and verdict.sound.reasons == ()
  assert verdict.faces is None and verdict.people == () and verdict.frame_consistency_score is None
  for found, window, logit in zip(verdict.sound.windows, windows, logits, strict=True):
    assert found.start_s == window["start_s"] and found.end_s - found.start_s == pytest.approx(2)
    assert found.probability == pytest.approx(float(OF_SOUND.probability(logit)), abs=1e-5)
  assert verdict.branches["tiny"].status == "absent"
  assert verdict.branches["tiny_voice"].weight == pytest.approx(1)


def test_moments_are_seconds_of_the_file_in_order(hearing, recording):
  sound = hearing.detect(recording).sound
  assert len(sound.moments) == 3 * 3
  starts = [moment.start_s for moment in sound.moments]
  assert starts == sorted(starts) and starts[0] == 0
  assert all(m.end_s - m.start_s == pytest.approx(1) and m.end_s <= SECONDS + 0.01 for m in sound.moments)
  assert len({round(m.probability, 4) for m in sound.moments}) > 3


def test_the_end_of_a_short_recording_has_no_moments(hearing, tmp_path):
  path = media_files.sound(
    tmp_path / "a.wav", voices.speech(seconds=1.3, seed=5), sample_rate_hz=voices.RATE_HZ
  )
  sound = hearing.detect(path).sound
  (window,) = sound.windows
  assert (window.start_s, window.end_s) == (0, pytest.approx(1.3, abs=0.01))
  assert [(m.start_s, m.end_s) for m in sound.moments] == [(0, 1)]


@pytest.mark.parametrize("name", ["hearing", "lip_reader"])
@pytest.mark.parametrize("file", ["recording", "talkie"])
def test_two_looks_with_sound_give_the_same_answer(name, file, request):
  detector, path = request.getfixturevalue(name), request.getfixturevalue(file)
  first, second = (without_timings(detector.detect(path, frames=4)) for _ in range(2))
  assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
  assert json.loads(json.dumps(first)) == first


def test_a_clip_is_judged_by_its_faces_and_by_its_sound(hearing, detector, listener, talkie):
  both = hearing.detect(talkie, frames=4)
  assert set(both.judged) == {"faces", "sound"} and both.judged[0] == both.decided_by
  assert both.faces.thresholds == CALIBRATION.thresholds and both.sound.thresholds == OF_SOUND.thresholds
  (person,) = both.people
  assert both.faces.deepfake_probability == person.deepfake_probability and len(both.sound.windows) == 1
  part = {"faces": both.faces, "sound": both.sound}[both.decided_by]
  assert (both.outcome, both.deepfake_probability, both.thresholds) == (
    part.outcome,
    part.deepfake_probability,
    part.thresholds,
  )
  assert all(branch.status == "ok" and branch.weight == pytest.approx(1) for branch in both.branches.values())
  # Two models that know of one of them only look at the same things.
  assert detector.detect(talkie, frames=4).sound is None
  assert listener.detect(talkie, frames=4).faces is None


@pytest.mark.parametrize(
  ("of_faces", "of_sound", "decides"),
  [
    (LIKELY_MANIPULATED, LIKELY_AUTHENTIC, "faces"),
    (LIKELY_MANIPULATED, INCONCLUSIVE, "faces"),
    (INCONCLUSIVE, LIKELY_AUTHENTIC, "faces"),
    (LIKELY_AUTHENTIC, LIKELY_MANIPULATED, "sound"),
    (INCONCLUSIVE, LIKELY_MANIPULATED, "sound"),
    (LIKELY_AUTHENTIC, INCONCLUSIVE, "faces"),
    (INCONCLUSIVE, INCONCLUSIVE, "faces"),
    (LIKELY_MANIPULATED, LIKELY_MANIPULATED, "faces"),
  ],
)
def test_sound_decides_only_where_it_alone_is_likely_manipulated(
  hearing, talkie, of_faces, of_sound, decides
):
  plain = hearing.detect(talkie, frames=4)
  changed = recalibrated(
    hearing,
    calibration=at_threshold(CALIBRATION, plain.faces.deepfake_probability, of_faces),
    sound_calibration=at_threshold(OF_SOUND, plain.sound.deepfake_probability, of_sound),
  )
  verdict = changed.detect(talkie, frames=4)
  assert (verdict.faces.outcome, verdict.sound.outcome) == (of_faces, of_sound)
  assert verdict.decided_by == decides
  part = {"faces": verdict.faces, "sound": verdict.sound}[decides]
  assert verdict.outcome == part.outcome and verdict.thresholds == part.thresholds
  assert verdict.deepfake_probability == part.deepfake_probability
  # What decided is explained first.
  told = {
    "faces": {LIKELY_MANIPULATED: ["blending_traces"], INCONCLUSIVE: ["between_thresholds"]},
    "sound": {LIKELY_MANIPULATED: ["synthetic_voice_traces"], INCONCLUSIVE: ["sound_between_thresholds"]},
  }
  explained = {name: told[name].get(getattr(verdict, name).outcome, []) for name in told}
  other = "sound" if decides == "faces" else "faces"
  assert [reason.code for reason in verdict.reasons] == explained[decides] + explained[other]


@pytest.mark.parametrize("higher", ["faces", "sound"])
def test_of_two_like_outcomes_the_faces_decide(hearing, talkie, higher):
  for_faces = dataclasses.replace(CALIBRATION, offset=3.0 if higher == "faces" else -3.0)
  verdict = recalibrated(hearing, calibration=for_faces).detect(talkie, frames=4)
  assert verdict.faces.outcome == verdict.sound.outcome and verdict.decided_by == "faces"
  assert (verdict.faces.deepfake_probability > verdict.sound.deepfake_probability) == (higher == "faces")


def test_a_clip_without_sound_is_judged_by_its_faces(hearing, clip):
  verdict = hearing.detect(clip, frames=4)
  assert verdict.decided_by == "faces" and verdict.judged == ("faces",)
  assert verdict.sound.deepfake_probability is None and verdict.sound.reasons == ("no_sound",)
  assert verdict.sound.outcome == NOT_APPLICABLE
  assert {r.code for r in verdict.reasons} <= {"blending_traces", "between_thresholds"}
  assert verdict.branches["tiny_voice"].status == "absent"


def test_a_clip_without_faces_is_judged_by_its_sound(hearing, tmp_path):
  path = media_files.write_video(
    tmp_path / "a.mp4",
    [face_media.no_face()] * 30,
    sound=voices.speech(seconds=1.2, seed=6),
    sound_rate_hz=voices.RATE_HZ,
  )
  verdict = hearing.detect(path, frames=4)
  assert verdict.decided_by == "sound" and verdict.judged == ("sound",)
  assert verdict.faces.deepfake_probability is None and verdict.faces.reasons == ("no_face",)
  assert verdict.faces.thresholds == CALIBRATION.thresholds and verdict.thresholds == OF_SOUND.thresholds


@pytest.mark.parametrize(
  ("sound", "reason"),
  [(None, "no_sound"), (media_files.tone(0.4), "sound_too_short"), (np.zeros(88_200, np.float32), "silent")],
)
def test_where_there_is_neither_face_nor_voice_both_are_named(hearing, listener, tmp_path, sound, reason):
  path = media_files.write_video(tmp_path / "a.mp4", [face_media.no_face()] * 10, sound=sound)
  verdict = hearing.detect(path, frames=2)
  assert verdict.outcome == NOT_APPLICABLE and verdict.decided_by is None and verdict.judged == ()
  assert [r.code for r in verdict.reasons] == ["no_face", reason]
  assert verdict.reasons[0].message == "No face was found."
  # A model that does not look for faces does not miss them.
  assert [r.code for r in listener.detect(path).reasons] == [reason]


def test_a_recording_that_cannot_be_judged_tells_why(hearing, listener, tmp_path):
  path = media_files.sound(tmp_path / "a.wav", media_files.tone(0.5))
  for detector in (hearing, listener):
    verdict = detector.detect(path)
    assert verdict.outcome == NOT_APPLICABLE and [r.code for r in verdict.reasons] == ["sound_too_short"]
    (reason,) = verdict.reasons
    assert "0.50 s long, shorter than the 1 s that are needed" in reason.message
    assert reason.facts == {"found_s": 0.5, "needed_s": 1.0} and reason.remedy == "Use a longer copy."


@pytest.mark.parametrize(
  ("sound", "code", "found", "bound"),
  [
    (np.full(40_000, 1e-6, np.float32), "silent", "found_level", "needed_level"),
    (media_files.tone(3.0), "no_speech", "found_speech_score", "needed_speech_score"),
    (
      np.clip(30 * voices.speech(seconds=3.0, seed=1), -1, 1),
      "clipped",
      "most_clipped_share",
      "found_clipped_share",
    ),
    (voices.telephone(voices.speech(seconds=3.0, seed=1)), "narrow_band", "found_band_hz", "needed_band_hz"),
  ],
)
def test_what_is_wrong_with_a_recording_is_told_in_numbers(listener, tmp_path, sound, code, found, bound):
  path = media_files.sound(tmp_path / "a.wav", sound, sample_rate_hz=voices.RATE_HZ)
  (reason,) = listener.detect(path).reasons
  assert reason.code == code and reason.facts[found] < reason.facts[bound]


def test_sound_that_fills_less_than_half_a_window_is_not_judged(tmp_path):
  detector = loaded(tmp_path / "best", "tiny_voice", calibration=None, seconds=3.0)
  outcomes = {}
  for seconds in (1.4, 1.6):
    path = media_files.sound(
      tmp_path / f"{seconds}.wav", voices.speech(seconds=seconds, seed=2), sample_rate_hz=voices.RATE_HZ
    )
    outcomes[seconds] = detector.detect(path)
  (reason,) = outcomes[1.4].reasons
  assert outcomes[1.4].outcome == NOT_APPLICABLE and reason.code == "sound_too_short"
  assert reason.facts["found_s"] == pytest.approx(1.4, abs=0.02) and reason.facts["needed_s"] == 1.5
  assert outcomes[1.6].deepfake_probability is not None


def test_a_model_of_sound_alone_looks_at_no_face(listener, talkie, monkeypatch):
  monkeypatch.setattr(examples, "find_subjects", None)
  monkeypatch.setattr(inference.faces, "prepare", None)
  verdict = listener.detect(talkie)
  assert verdict.decided_by == "sound" and verdict.people == () and verdict.faces is None
  picture = listener.detect_images(face_media.portrait()[None])
  assert picture.outcome == NOT_APPLICABLE and picture.thresholds == OF_SOUND.thresholds
  assert [r.code for r in picture.reasons] == ["image_not_supported"]


def test_a_picture_has_no_sound_to_be_missed(hearing):
  verdict = hearing.detect_images(face_media.portrait()[None])
  assert verdict.sound is None and verdict.decided_by == "faces"
  nobody = hearing.detect_images(face_media.no_face()[None])
  assert [r.code for r in nobody.reasons] == ["no_face"]


def test_windows_over_time_are_judged_with_the_sound_of_their_time(lip_reader, talkie):
  verdict = lip_reader.detect(talkie, frames=8)
  assert verdict.decided_by == "faces" and verdict.sound is None
  (person,) = verdict.people
  assert len(person.sightings) == 25 and person.judged == len(verdict.evidence) == 4
  assert {branch.status for branch in verdict.branches.values()} == {"ok"}
  assert sum(branch.weight for branch in verdict.branches.values()) == pytest.approx(1, abs=1e-5)
  found = media.decode_clip(talkie, plan=examples.sampling_plan(lip_reader.window, frames=8))
  (subject,) = examples.find_subjects(found)
  (window,) = examples.face_windows(subject, found, window=lip_reader.window)
  assert window["face_mask"].all() and window["mouth_mask"].all() and len(window["sound"]) == 16_000
  inputs = examples.model_inputs(window, window=lip_reader.window, keys=lip_reader.inputs)
  judged = lip_reader.judge(examples.stack([inputs]))
  assert verdict.deepfake_probability == pytest.approx(
    float(CALIBRATION.probability(judged.logits[0])), abs=1e-5
  )
  seen = [s.probability for s in person.sightings if s.probability is not None]
  np.testing.assert_allclose(seen, CALIBRATION.probability(judged.frame_logits[0]), atol=1e-5)


def test_the_effect_of_a_branch_is_what_is_left_when_its_inputs_are_hidden(lip_reader, talkie):
  verdict = lip_reader.detect(talkie, frames=8)
  found = media.decode_clip(talkie, plan=examples.sampling_plan(lip_reader.window, frames=8))
  (subject,) = examples.find_subjects(found)
  windows = examples.face_windows(subject, found, window=lip_reader.window)
  cut = [examples.model_inputs(w, window=lip_reader.window, keys=lip_reader.inputs) for w in windows]
  inputs = examples.stack(cut)
  # Only these branches read what these masks hide; the voice is read by two.
  for name, mask in (("tiny", "crop_mask"), ("tiny_lips", "mouth_mask")):
    hidden = lip_reader.judge({**inputs, mask: np.zeros_like(inputs[mask])})
    branch = verdict.branches[name]
    without = float(CALIBRATION.probability(hidden.logits[0]))
    assert branch.probability_without == pytest.approx(without, abs=1e-5)
    whole = lip_reader.judge(inputs).logits[0]
    expected = CALIBRATION.scale * (whole - hidden.logits[0])
    assert branch.contribution == pytest.approx(expected, abs=1e-4) and abs(expected) > 1e-3
  told = verdict.to_dict()["branches"]["tiny_lips"]
  assert told["contribution"] == pytest.approx(verdict.branches["tiny_lips"].contribution, abs=1e-6)


def test_what_is_absent_from_a_whole_batch_need_not_be_looked_at(lip_reader, talkie, monkeypatch):
  found = media.decode_clip(talkie, plan=examples.sampling_plan(lip_reader.window, frames=8))
  (subject,) = examples.find_subjects(found)
  windows = examples.face_windows(subject, found, window=lip_reader.window)
  cut = [examples.model_inputs(w, window=lip_reader.window, keys=lip_reader.inputs) for w in windows]
  inputs = examples.stack(cut)
  judged, judge = [], lip_reader.judge
  monkeypatch.setattr(lip_reader, "judge", lambda batch: (judged.append(set(batch)), judge(batch))[1])
  everything = set(lip_reader.inputs)
  lip_reader.judge_held({**inputs, "label": np.zeros(len(cut), np.int32)})
  assert judged.pop() == everything
  for mask, left_out in (
    ("crop_mask", {"crops", "crop_mask"}),
    ("waveform_mask", {"waveform", "waveform_mask"}),
  ):
    hidden = {**inputs, mask: np.zeros_like(inputs[mask])}
    alone = lip_reader.judge_held(hidden)
    assert everything - judged.pop() == left_out == everything - set(lip_reader.inputs_without([mask]))
    np.testing.assert_allclose(alone.logits, judge(hidden).logits, atol=1e-5)
    # So it is where they were never made.
    fewer = {key: value for key, value in hidden.items() if key not in left_out}
    np.testing.assert_array_equal(lip_reader.judge_held(fewer).logits, alone.logits)
    judged.clear()
  # The mouth alone says nothing, and nothing at all is a question too.
  hidden |= {"crop_mask": np.zeros_like(inputs["crop_mask"])}
  lip_reader.judge_held(hidden)
  assert judged == [everything]


def test_what_was_alone_has_no_effect_to_tell(lip_reader, recording, detector, clip):
  for verdict in (lip_reader.detect(recording), detector.detect(clip, frames=2)):
    assert {branch.contribution for branch in verdict.branches.values()} == {None}


def test_a_model_of_windows_hears_a_recording(lip_reader, recording):
  verdict = lip_reader.detect(recording)
  assert verdict.decided_by == "sound" and len(verdict.sound.windows) == 6
  absent = {name for name, branch in verdict.branches.items() if branch.status == "absent"}
  assert absent == {"tiny", "tiny_lips"}


def test_frames_that_no_branch_tells_apart_have_the_score_of_their_window(tmp_path, talkie):
  detector = loaded(tmp_path / "best", "tiny_lips", frames=4, mouth_frames=25, seconds=1.0)
  verdict = detector.detect(talkie, frames=8)
  (person,) = verdict.people
  assert person.judged == 4 and verdict.evidence == ()
  assert {s.probability for s in person.sightings} == {None, verdict.deepfake_probability}


def test_a_model_that_is_not_calibrated_for_sound_does_not_judge_it(tmp_path, recording, talkie):
  detector = loaded(tmp_path / "best", "tiny", "tiny_voice", sound_calibration=None)
  assert [r.code for r in detector.detect(recording).reasons] == ["audio_not_supported"]
  verdict = detector.detect(talkie, frames=2)
  assert verdict.sound is None and verdict.decided_by == "faces"
  with pytest.raises(checkpoints.CheckpointError, match="has no calibration"):
    loaded(tmp_path / "other", "tiny_voice", sound_calibration=None)


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


def test_moments_are_as_long_as_the_audio_branch_makes_them():
  assert AudioBranch.window_s == inference.MOMENT_S
