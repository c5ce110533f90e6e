import pytest

from deepscan_jax import reasons, speech
from deepscan_jax.faces import FaceQuality, quality_problems
from deepscan_jax.verdict import Person, Sighting, SoundWindow, Thresholds

GOOD = FaceQuality(size_px=200, sharpness=0.05, yaw=5, pitch=3, roll=0, brightness=120, clipped=0.01)
THRESHOLDS = Thresholds(inconclusive=0.4, manipulated=0.7, false_positive_rate=0.05)


def face(**changes) -> FaceQuality:
  return FaceQuality(**{**vars(GOOD), **changes})


@pytest.mark.parametrize(
  ("qualities", "code", "facts", "told"),
  [
    ([face(size_px=41.4), face(size_px=30)], "face_too_small", {"found_px": 41.4, "needed_px": 48}, "41 px"),
    ([face(size_px=47.99)], "face_too_small", {"found_px": 48.0, "needed_px": 48}, "47 px across; 48 px"),
    (
      [face(sharpness=0.001), face(sharpness=0.004)],
      "face_too_blurred",
      {"found_sharpness": 0.004, "needed_sharpness": 0.008},
      "0.0040; 0.008",
    ),
    (
      [face(yaw=-71), face(yaw=64)],
      "extreme_pose",
      {"found_yaw_degrees": 64, "most_yaw_degrees": 60, "found_pitch_degrees": 3, "most_pitch_degrees": 45},
      "64\N{DEGREE SIGN} aside",
    ),
    (
      [face(brightness=12), face(brightness=25)],
      "bad_exposure",
      {"found_brightness": 25, "least_brightness": 30, "most_brightness": 235},
      "brightness 25",
    ),
  ],
)
def test_a_reason_tells_the_numbers_of_the_best_face(qualities, code, facts, told):
  assert all(quality_problems(q) == (code,) for q in qualities)
  (reason,) = reasons.unjudged_faces([code], qualities)
  assert reason.code == code and reason.facts.items() >= facts.items() and told in reason.message
  assert reason.remedy and reason.text == f"{reason.message} {reason.remedy}"


def test_a_sharp_face_that_was_refused_for_something_else_is_not_called_blurred():
  blurred, small = face(sharpness=0.001), face(size_px=20)
  reason, _ = reasons.unjudged_faces(["face_too_blurred", "face_too_small"], [blurred, small])
  assert reason.message == "The faces are too blurred to be judged."


def test_every_code_of_the_gates_has_a_sentence_and_a_remedy():
  seen = face(size_px=9, sharpness=0.0, yaw=90, brightness=0)
  codes = quality_problems(seen)
  assert len(codes) == 4
  found = list(reasons.unjudged_faces(codes, [seen]))
  facts = {"found_s": 0.5, "needed_s": 1.0, "found_band_hz": 4000.0, "needed_band_hz": 4750.0}
  gates = ("no_sound", "sound_too_short", "silent", "no_speech", "clipped", "narrow_band")
  found += [reasons.unjudged_sound(code, facts) for code in gates]
  found += [reasons.no_face(hears=hears) for hears in (True, False)]
  found += [reasons.not_supported(kind) for kind in ("audio", "image")]
  for reason in found:
    assert reason.message.endswith(".") and reason.remedy.endswith(".") and "{" not in reason.text
  assert "0.50 s long, shorter than the 1 s that are needed" in found[5].message
  # What the gate of sound may say stands in its docstring.
  assert all(f'"{code}"' in speech.speech_problems.__doc__ for code in gates[1:])


def test_reasons_of_what_was_judged():
  sightings = tuple(
    Sighting(t, (0, 0, 9, 9), p) for t, p in ((0.0, 0.9), (1.0, 0.95), (2.0, None), (3.0, 0.1))
  )
  person = Person(3, 0.8, sightings, {})
  traces = reasons.blending_traces(person, THRESHOLDS)
  assert traces.facts == {"person": 3, "marked_frames": 2, "judged_frames": 3, "strongest_s": 1.0}
  assert "2 of 3 judged frames of person 3, strongest at 1.00 s" in traces.message and not traces.remedy
  assert reasons.brief_person_suspicious(person).facts == {"person": 3, "judged_frames": 3}
  assert reasons.few_judged_frames(person).facts == {"judged_frames": 3, "seen_frames": 4}
  windows = [SoundWindow(0.0, 4.0, 0.5), SoundWindow(4.0, 8.0, 0.8)]
  heard = reasons.synthetic_voice_traces(windows, [], THRESHOLDS)
  assert heard.facts == {"marked_stretches": 1, "judged_stretches": 2, "strongest_s": 4.0}
  for sound, code in ((False, "between_thresholds"), (True, "sound_between_thresholds")):
    between = reasons.between_thresholds(0.5, THRESHOLDS, sound=sound)
    assert between.code == code
    assert between.facts == {"found_probability": 0.5, "authentic_below": 0.4, "manipulated_from": 0.7}
