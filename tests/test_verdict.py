import dataclasses
import json

import numpy as np
import pytest

from deepscan_jax import verdict
from deepscan_jax.verdict import (
  BranchVerdict,
  Faces,
  OutcomeRates,
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
  "timings", "warnings", "faces", "sound", "decided_by", "run", "stability", "at_prevalence",
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
    reasons=(Reason("few_frames", "Only one frame.", "Use more.", {"found": 1, "needed": 2}),),
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
  assert facts["reasons"] == [
    {
      "code": "few_frames",
      "message": "Only one frame.",
      "remedy": "Use more.",
      "facts": {"found": 1, "needed": 2},
    }
  ]
  assert answer.reasons[0].text == "Only one frame. Use more." and Reason("a", "B.").text == "B."
  assert facts["branches"]["spatial"] == {
    "probability": 0.8, "weight": 1.0, "status": "ok", "contribution": None, "probability_without": None
  }  # fmt: skip
  assert facts["people"][0]["marked"] == [] and facts["at_prevalence"] is None
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
  assert len(facts["sound"]["moments"]) == 1 and facts["sound"]["marked"] == []


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


def test_a_person_is_marked_where_the_threshold_is_reached():
  judged = [0.1, 0.8, 0.9, 0.2, 0.75, 0.1]
  seen = person(1, *zip(np.arange(6) * 0.5, judged, strict=True))
  assert seen.marked(THRESHOLDS) == [(0.25, 1.25), (1.75, 2.25)]
  # Ends reach no farther than what was looked at.
  assert person(1, (2.0, 0.9), (3.0, 0.9)).marked(THRESHOLDS) == [(2.0, 3.0)]
  assert person(1, (2.0, 0.9)).marked(THRESHOLDS) == [(2.0, 2.0)]
  assert person(1, (0.0, 0.69), (1.0, 0.2)).marked(THRESHOLDS) == []


def test_what_was_not_looked_at_is_not_marked():
  # Ten seconds away from all others, by no more than three quarters of the usual second.
  times = (0.0, 1.0, 2.0, 12.0)
  assert person(1, *((t, 0.9) for t in times)).marked(THRESHOLDS) == [(0.0, 2.75), (11.25, 12.0)]
  refused = Sighting(1.0, (0, 0, 9, 9), None, ("face_too_small",))
  skipped = dataclasses.replace(refused, reasons=())
  ends = [Sighting(t, (0, 0, 9, 9), 0.9) for t in (0.0, 2.0)]
  for middle, expected in ((refused, [(0.0, 0.5), (1.5, 2.0)]), (skipped, [(0.0, 2.0)])):
    seen = Person(1, 0.9, (ends[0], middle, ends[1]), {})
    assert seen.marked(THRESHOLDS) == expected


def test_sound_is_marked_as_finely_as_it_was_heard():
  windows = (SoundWindow(0.0, 4.0, 0.95), SoundWindow(4.0, 8.0, 0.92), SoundWindow(8.0, 12.0, 0.1))
  assert sound(windows=windows).marked == [(0.0, 8.0)]
  moments = tuple(SoundWindow(t, t + 1, 0.95 if t in (1, 2, 6) else 0.2) for t in range(12))
  assert sound(windows=windows, moments=moments).marked == [(1, 3), (6, 7)]


RATES = OutcomeRates(real=(0.75, 0.2, 0.05), fake=(0.3, 0.2, 0.5), real_groups=200, fake_groups=100)


def test_what_a_verdict_is_worth_where_fakes_are_rare():
  worth = make(probability=0.8, rates=RATES, prevalence=0.01).to_dict()["at_prevalence"]
  # Of 10,000 files 100 are fakes: 50 of them are called so, and 495 of the 9,900 others.
  assert worth["fakes_found_per_10000"] == pytest.approx(50)
  assert worth["false_alarms_per_10000"] == pytest.approx(495)
  assert worth["share_of_fakes"] == pytest.approx(50 / 545, abs=1e-6)
  low, high = worth["share_of_fakes_interval"]
  assert 0 < low < 50 / 545 < high < 0.3
  # Odds of 4 to 1 for, of 1 to 99 before.
  assert worth["probability"] == pytest.approx(4 / 103, abs=1e-6)
  assert make(probability=0.8, prevalence=0.5).at_prevalence["probability"] == pytest.approx(0.8)


@pytest.mark.parametrize(
  ("outcome", "share"),
  [
    (verdict.LIKELY_AUTHENTIC, 0.1 * 0.3 / (0.1 * 0.3 + 0.9 * 0.75)),
    (verdict.INCONCLUSIVE, 0.1),
    (verdict.LIKELY_MANIPULATED, 0.05 / 0.095),
  ],
)
def test_each_outcome_has_a_worth_of_its_own(outcome, share):
  answer = make(outcome, 0.5, rates=RATES, prevalence=0.1)
  assert answer.at_prevalence["share_of_fakes"] == pytest.approx(share)


def test_what_is_not_known_of_worth_is_not_said():
  unknown = make(probability=0.8, prevalence=0.01).at_prevalence
  assert unknown["probability"] > 0 and unknown["share_of_fakes"] is None
  nothing = make(verdict.NOT_APPLICABLE, None, rates=RATES, prevalence=0.01).at_prevalence
  assert set(nothing.values()) == {0.01, None}
  never = dataclasses.replace(RATES, real=(1.0, 0.0, 0.0), fake=(1.0, 0.0, 0.0))
  assert never.share_of_fakes(verdict.INCONCLUSIVE, prevalence=0.5) is None
  with pytest.raises(ValueError, match="above 0 and below 1, got 1"):
    make(prevalence=1.0)
