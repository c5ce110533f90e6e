import dataclasses
import json
import math

import face_media
import media_files
import numpy as np
import pytest
import voices
from tiny import CALIBRATION, tiny_branch, tiny_config, write_model

from deepscan_jax import examples, media, perturb, report, stability, verdict
from deepscan_jax.calibration import Calibration
from deepscan_jax.config import WindowConfig, override
from deepscan_jax.inference import Detector
from deepscan_jax.launch import detect
from deepscan_jax.perturb import Rung
from deepscan_jax.verdict import LIKELY_AUTHENTIC, LIKELY_MANIPULATED, NOT_APPLICABLE

FRAMES = face_media.moving_portrait(4)


@pytest.fixture(autouse=True)
def tiny():
  with tiny_branch():
    yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """Its thresholds lie close above the score of the portrait, so that damage moves it across."""
  folder = write_model(tmp_path_factory.mktemp("model") / "best")
  with tiny_branch():
    p = Detector(folder).detect_images(np.stack(FRAMES)).deepfake_probability
  logit = (math.log(p / (1 - p)) - CALIBRATION.offset) / CALIBRATION.scale
  near = dataclasses.replace(CALIBRATION, inconclusive=logit + 0.002, manipulated=logit + 0.003)
  return write_model(folder, calibration=near)


@pytest.fixture(scope="module")
def detector(model):
  with tiny_branch():
    yield Detector(model)


def clip_of(frames, waveform=None, *, kind="video") -> media.Clip:
  return media.Clip(
    kind=kind,
    frames=np.asarray(frames),
    frame_times_s=np.arange(len(frames)) / 25,
    waveform=np.zeros(0, np.float32) if waveform is None else waveform,
    sample_rate_hz=media.SAMPLE_RATE_HZ,
    facts={},
    warnings=(),
  )


def test_each_step_is_what_the_detector_says_of_damaged_frames(detector):
  told = []
  found = stability.measure(
    detector,
    clip_of(FRAMES),
    frames=4,
    names=["contrast", "noise"],
    report_progress=lambda *counts: told.append(counts),
  )
  assert list(found.ladders) == ["contrast", "noise"] and found.frames == 4
  assert told == [(done, 10) for done in range(1, 11)]
  untouched = detector.detect_images(np.stack(FRAMES))
  assert (found.outcome, found.deepfake_probability) == (LIKELY_AUTHENTIC, untouched.deepfake_probability)
  for name, level in (("contrast", 5), ("noise", 2)):
    expected = detector.detect_images(Rung(name, level).frames(np.stack(FRAMES), seed=0))
    step = found.ladders[name].steps[level - 1]
    assert (step.outcome, step.deepfake_probability) == (expected.outcome, expected.deepfake_probability)
    assert step.level == level and step.setting == perturb.find(name).say(level)
  scores = {step.deepfake_probability for ladder in found.ladders.values() for step in ladder.steps}
  assert len(scores) > 5


def test_a_face_that_is_lost_is_a_change(detector):
  """Damage may hide the face from the detector of faces as well."""
  small = [face_media.portrait(side=96)]
  found = stability.measure(detector, clip_of(small, kind="image"), names=["resize"])
  ladder = found.ladders["resize"]
  assert ladder.steps[-1].outcome == NOT_APPLICABLE and ladder.steps[-1].deepfake_probability is None
  assert ladder.breaks is not None and ladder.holds_to < 5


def test_where_nothing_is_judged_there_is_nothing_to_hold(detector):
  assert stability.measure(detector, clip_of([face_media.no_face()])) is None
  with pytest.raises(ValueError, match="changes what this model reads"):
    stability.measure(detector, clip_of(FRAMES), names=["mp3"])


def test_sound_is_damaged_for_a_model_that_listens(tmp_path):
  config = override(override(tiny_config(), 'model.branches=["tiny_voice"]'), "data.window.samples=32000")
  config = override(config, 'data.pseudofake_kinds=[["voice", 1.0]]')
  calibration = Calibration(1.0, 0.0, inconclusive=-9.0, manipulated=9.0, false_positive_rate=0.1)
  folder = write_model(tmp_path / "voice", calibration=None, sound_calibration=calibration, config=config)
  listening = Detector(folder)
  speech = voices.speech(seconds=5.0, seed=1)
  clip = clip_of(np.zeros((0, 0, 0, 3), np.uint8), speech, kind="audio")
  found = stability.measure(listening, clip, names=["blur", "sound_noise"])
  assert list(found.ladders) == ["sound_noise"] and found.frames == 0
  noisy = dataclasses.replace(clip, waveform=Rung("sound_noise", 3).sound(speech, seed=0))
  expected = listening.detect_clip(noisy)
  assert found.ladders["sound_noise"].steps[2].deepfake_probability == expected.deepfake_probability
  # A film without sound leaves nothing to damage.
  assert stability.measure(listening, clip_of(FRAMES), names=["sound_noise"]) is None


def test_a_clip_is_thinned_evenly_and_in_whole_runs():
  many = clip_of(np.arange(32, dtype=np.uint8).reshape(32, 1, 1, 1).repeat(3, axis=3))
  of_single = WindowConfig(frames=1).reading(("crops", "crop_mask"))
  single = stability.thinned(many, window=of_single, frames=8)
  assert single.frames[:, 0, 0, 0].tolist() == [2, 6, 10, 14, 18, 22, 26, 30]
  np.testing.assert_array_equal(single.frame_times_s, many.frame_times_s[2::4])
  few = stability.thinned(many, window=of_single, frames=100)
  np.testing.assert_array_equal(few.frames, many.frames)
  window = dataclasses.replace(of_single, frames=4)
  run = examples.sampling_plan(window, frames=8).window_frames
  assert run > 1
  runs = stability.thinned(many, window=window, frames=16).frames[:, 0, 0, 0].reshape(2, run)
  assert (np.diff(runs, axis=1) == 1).all() and (runs[:, 0] % run == 0).all()
  long = clip_of(FRAMES, np.zeros(70 * 16_000, np.float32))
  assert len(stability.thinned(long, window=of_single, frames=4).waveform) == 60 * 16_000


def test_the_command_says_how_far_the_verdict_holds(detector, tmp_path, capsys):
  film = media_files.write_video(tmp_path / "film.mp4", face_media.moving_portrait(8))
  places = {f"output_{kind}": str(tmp_path / f"out.{kind}") for kind in ("json", "html")}
  code = detect.detect(
    detector, [detect.Input(tmp_path / "film.mp4")], frames=4, stability_frames=2, **places
  )
  assert code == 0 and film is not None
  told = " ".join(capsys.readouterr().out.split())
  found = json.loads((tmp_path / "out.json").read_text())
  stable = found["stability"]
  assert stable["outcome"] == found["outcome"] and stable["frames"] == 2
  kinds = {name for name, kind in perturb.PERTURBATIONS.items() if kind.of == perturb.FRAMES}
  assert stable["perturbations"].keys() == kinds and found["timings"]["stability_s"] > 0
  for ladder in stable["perturbations"].values():
    outcomes = [step["outcome"] for step in ladder["scores"]]
    assert len(outcomes) == perturb.LEVELS
    held = next((i for i, outcome in enumerate(outcomes) if outcome != stable["outcome"]), 5)
    assert ladder["holds_to"] == held
    assert (ladder["breaks_at"], ladder["becomes"]) == (
      (None, None) if held == 5 else (held + 1, outcomes[held])
    )
  # The thresholds are so near that some damage moves the score across.
  weakest = stable["perturbations"][stable["weakest"]]
  assert weakest["holds_to"] == min(ladder["holds_to"] for ladder in stable["perturbations"].values())
  sentence = f"{perturb.find(stable['weakest']).title}, level {weakest['breaks_at']}"
  assert sentence in told and f"of {len(kinds)} kinds of damage" in told
  assert "How far the verdict holds" in (tmp_path / "out.html").read_text()


def test_a_ladder_that_comes_back_still_broke():
  steps = [
    verdict.Rescored(level, "x", outcome, 0.5)
    for level, outcome in enumerate((LIKELY_AUTHENTIC, LIKELY_MANIPULATED, LIKELY_AUTHENTIC), start=1)
  ]
  ladder = verdict.Ladder("Dust", "dust", tuple(steps), LIKELY_AUTHENTIC)
  assert ladder.holds_to == 1 and ladder.breaks == steps[1]
  calm = verdict.Ladder("Dust", "dust", (steps[0], steps[2]), LIKELY_AUTHENTIC)
  assert calm.holds_to == 3 and calm.breaks is None
  found = verdict.Stability(LIKELY_AUTHENTIC, 0.5, 1, {"calm": calm, "dust": ladder})
  assert found.weakest == "dust"
  assert "level 2 (x), to likely manipulated" in report.stability_sentence(found)
  steady = dataclasses.replace(found, ladders={"calm": calm})
  assert steady.weakest is None
  assert report.stability_sentence(steady) == (
    "The outcome (likely authentic) holds at all levels of 1 kind of damage."
  )
