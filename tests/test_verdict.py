import dataclasses
import json

import numpy as np
import pytest

from deepscan_jax import verdict
from deepscan_jax.verdict import (
  BranchVerdict,
  Faces,
  Person,
  Reason,
  Sighting,
  Sound,
  SoundWindow,
  Thresholds,
  Verdict,
)

THRESHOLDS = Thresholds(inconclusive=0.4, manipulated=0.7, false_positive_rate=0.02)
OF_SOUND = Thresholds(inconclusive=0.8, manipulated=0.9, false_positive_rate=0.05)
EXPECTED_KEYS = {
  "schema_version", "deepfake_probability", "is_deepfake", "confidence", "frame_consistency_score",
  "recommendation", "outcome", "reasons", "thresholds", "branches", "people", "timeline", "model", "file",
  "timings", "warnings", "faces", "sound", "decided_by", "run", "stability",
}  # fmt: skip


def make(outcome=verdict.LIKELY_MANIPULATED, probability=0.8, people=(), **changes):
  facts = {
    "outcome": outcome,
    "deepfake_probability": probability,
    "frame_consistency_score": 0.9,
    "reasons": (),
    "branches": {"spatial": BranchVerdict(probability, 1.0)},
    "people": people,
    "thresholds": THRESHOLDS,
    "model": {"name": "m", "version": "1", "sha256": "0" * 64},
    "file": {"name": "a.mp4"},
    "timings": {"decode": 0.5},
  }
  return Verdict(**facts | changes)


def person(number, *sightings):
  return Person(number, 0.5, tuple(Sighting(t, (0, 0, 9, 9), p) for t, p in sightings), {})


@pytest.mark.parametrize("count", [2, 3, 8, 33])
def test_frame_consistency_is_what_a_plain_loop_finds(count):
  probabilities = np.random.default_rng(count).random(count)
  ordered = sorted(probabilities)
  middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
  expected = 1 - 2 * sum(abs(p - middle) for p in probabilities) / count
  assert verdict.frame_consistency(probabilities) == pytest.approx(expected, abs=1e-12)


def test_frame_consistency_at_its_ends():
  assert verdict.frame_consistency(np.full(5, 0.3)) == 1
  assert verdict.frame_consistency(np.array([0.0, 1.0, 0.0, 1.0])) == 0
  assert verdict.frame_consistency(np.array([0.4])) is None
  assert verdict.frame_consistency(np.array([])) is None


@pytest.mark.parametrize(
  ("outcome", "probability", "is_deepfake", "confidence"),
  [
    (verdict.LIKELY_MANIPULATED, 0.8, True, 0.8),
    (verdict.INCONCLUSIVE, 0.6, False, 0.4),
    (verdict.LIKELY_AUTHENTIC, 0.1, False, 0.9),
    (verdict.NOT_APPLICABLE, None, None, None),
  ],
)
def test_what_follows_from_outcome_and_probability(outcome, probability, is_deepfake, confidence):
  answer = make(outcome, probability)
  assert answer.is_deepfake is is_deepfake
  assert answer.confidence == confidence
  assert answer.judged == (() if probability is None else ("faces",))


def sound(outcome=verdict.LIKELY_MANIPULATED, probability=0.95, **changes):
  facts = {"outcome": outcome, "deepfake_probability": probability, "reasons": (), "thresholds": OF_SOUND}
  return Sound(**facts | changes)


def test_every_outcome_has_a_recommendation_that_fits_what_was_judged():
  assert set(verdict.RECOMMENDATIONS) == set(verdict.OUTCOMES)
  of_faces, of_sound, of_both = {}, {}, {}
  for outcome in verdict.OUTCOMES[:3]:
    of_faces[outcome] = make(outcome, 0.5).recommendation
    of_sound[outcome] = make(outcome, 0.5, sound=sound(outcome), decided_by="sound").recommendation
    of_both[outcome] = make(outcome, 0.5, sound=sound(outcome)).recommendation
    assert not any("{" in words for words in (of_faces[outcome], of_sound[outcome], of_both[outcome]))
    assert not any(word in of_faces[outcome] for word in ("voice", "listen"))
    assert not any(word in of_sound[outcome] for word in ("face", "frame", "region"))
  assert "a manipulated face or a synthetic voice" in of_both[verdict.LIKELY_AUTHENTIC]
  for outcome in (verdict.INCONCLUSIVE, verdict.LIKELY_MANIPULATED):
    assert "highest and listen to the stretches" in of_both[outcome]
  # Only what is suspicious is worth a look, where anything is.
  faces = Faces(verdict.LIKELY_AUTHENTIC, 0.1, (), THRESHOLDS)
  unlike = make(verdict.LIKELY_MANIPULATED, 0.95, sound=sound(), faces=faces, decided_by="sound")
  assert unlike.recommendation == of_sound[verdict.LIKELY_MANIPULATED]


def test_what_is_said_of_the_faces_is_the_verdict_where_they_decide():
  assert make().faces == Faces(verdict.LIKELY_MANIPULATED, 0.8, (), THRESHOLDS)
  changed = dataclasses.replace(make(), outcome=verdict.INCONCLUSIVE, thresholds=OF_SOUND)
  assert changed.faces == Faces(verdict.INCONCLUSIVE, 0.8, (), OF_SOUND)
  assert make(verdict.NOT_APPLICABLE, None).faces is None
  assert make(sound=sound(), decided_by="sound").faces is None


def test_what_decided_comes_first_among_what_was_judged():
  faces = Faces(verdict.LIKELY_AUTHENTIC, 0.1, (), THRESHOLDS)
  assert make(sound=sound()).judged == ("faces", "sound")
  assert make(sound=sound(), faces=faces, decided_by="sound").judged == ("sound", "faces")
  unheard = sound(verdict.NOT_APPLICABLE, None, reasons=("silent",))
  assert make(sound=unheard).judged == ("faces",)
  assert make(verdict.NOT_APPLICABLE, None, sound=unheard, decided_by=None).judged == ()


@pytest.mark.parametrize(
  ("probability", "outcome"),
  [(0.39, verdict.LIKELY_AUTHENTIC), (0.4, verdict.INCONCLUSIVE), (0.7, verdict.LIKELY_MANIPULATED)],
)
def test_thresholds_belong_to_what_lies_above_them(probability, outcome):
  assert THRESHOLDS.outcome(probability) == outcome


def test_the_timeline_holds_the_highest_of_each_moment_in_order():
  people = (person(1, (0.0, 0.2), (1.0, None), (2.0, 0.4)), person(2, (2.0, 0.9), (1.0, None), (0.5, 0.1)))
  assert make(people=people).timeline == [
    {"time_s": 0.0, "probability": 0.2},
    {"time_s": 0.5, "probability": 0.1},
    {"time_s": 1.0, "probability": None},
    {"time_s": 2.0, "probability": 0.9},
  ]


def test_the_json_has_every_field_and_survives_a_round_trip():
  answer = make(
    people=(person(1, (0.0, 0.25), (1.0, None)),),
    reasons=(Reason("few_frames", "Only one frame."),),
    warnings=("careful",),
  )
  facts = answer.to_dict()
  assert set(facts) == EXPECTED_KEYS
  assert json.loads(json.dumps(facts, allow_nan=False)) == facts
  assert facts["people"][0]["frames_seen"] == 2
  assert facts["people"][0]["frames_judged"] == 1
  assert facts["people"][0]["boxes"][1] == {
    "time_s": 1.0, "box": [0, 0, 9, 9], "probability": None, "reasons": []
  }  # fmt: skip
  assert facts["reasons"] == [{"code": "few_frames", "message": "Only one frame."}]
  assert facts["branches"]["spatial"] == {"probability": 0.8, "weight": 1.0, "status": "ok"}
  assert facts["faces"]["thresholds"] == facts["thresholds"] and facts["sound"] is None


def test_the_json_tells_what_the_sound_and_the_faces_are_each_judged_by():
  stretches = (SoundWindow(0.0, 4.0, 0.9), SoundWindow(4.0, 8.0, 0.99))
  heard = sound(windows=stretches, moments=(SoundWindow(0.5, 1.5, 0.3),))
  faces = Faces(verdict.LIKELY_AUTHENTIC, 0.1, (), THRESHOLDS)
  facts = make(probability=0.95, sound=heard, faces=faces, decided_by="sound", thresholds=OF_SOUND).to_dict()
  assert json.loads(json.dumps(facts, allow_nan=False)) == facts
  assert facts["decided_by"] == "sound" and facts["schema_version"] == "1.2"
  assert facts["thresholds"] == facts["sound"]["thresholds"] == dataclasses.asdict(OF_SOUND)
  assert facts["faces"] == {
    "outcome": "likely_authentic",
    "deepfake_probability": 0.1,
    "reasons": [],
    "thresholds": dataclasses.asdict(THRESHOLDS),
  }
  assert facts["sound"]["windows"][1] == {"start_s": 4.0, "end_s": 8.0, "probability": 0.99}
  assert len(facts["sound"]["moments"]) == 1


def test_numpy_values_become_plain_ones_and_nothing_is_nan():
  box = tuple(np.array([0.1, 0.2, 3.3, 4.4], np.float32))
  sighting = Sighting(np.float64(1 / 3), box, np.float32("nan"))
  answer = make(
    probability=np.float32(0.75),
    people=(Person(np.int64(1), np.float32(0.75), (sighting,), {"blur": np.float32("inf"), "ok": np.True_}),),
    file={"name": "a.mp4", "width": np.int32(640)},
  )
  text = json.dumps(answer.to_dict(), allow_nan=False)
  seen = json.loads(text)
  assert seen["people"][0]["boxes"][0]["probability"] is None
  assert seen["people"][0]["boxes"][0]["time_s"] == 0.333333
  assert seen["people"][0]["quality"] == {"blur": None, "ok": True}
  assert seen["file"]["width"] == 640
  assert seen["is_deepfake"] is True


def test_a_verdict_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    make().outcome = verdict.LIKELY_AUTHENTIC
