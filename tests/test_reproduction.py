"""Two verdicts as JSON: what counts as the same, and what is told."""

import copy
import json

import pytest

from deepscan_jax import environment, reproduction, verdict
from deepscan_jax.verdict import (
  BranchVerdict,
  Person,
  Reason,
  Sighting,
  Sound,
  SoundWindow,
  Thresholds,
  Verdict,
)

THRESHOLDS = Thresholds(0.4, 0.7, 0.02)


def entry(**changes) -> dict:
  people = tuple(
    Person(
      number,
      probability,
      tuple(Sighting(t, (10.0, 10.0, 90.0, 99.0), p) for t, p in ((0.0, probability), (1.5, None))),
      {"median_sharpness": 0.2},
    )
    for number, probability in ((1, 0.8), (2, 0.3))
  )
  facts = {
    "outcome": verdict.LIKELY_MANIPULATED,
    "deepfake_probability": 0.8,
    "frame_consistency_score": 0.9,
    "reasons": (Reason("blending_traces", "Traces in 1 of 2 frames."),),
    "branches": {"spatial": BranchVerdict(0.8, 1.0)},
    "people": people,
    "thresholds": THRESHOLDS,
    "model": {"name": "m", "version": "1", "sha256": "0" * 64},
    "file": {"name": "a.mp4", "bytes": 3, "sha256": "1" * 64, "kind": "video", "media": {"bit_rate": 1000.0}},
    "timings": {"total_s": 0.5},
    "run": {"path": "a.mp4", "frames": 4, "device": "cpu", "versions": {"jax": "0.10.2", "av": "15.0"}},
    "sound": Sound(verdict.INCONCLUSIVE, 0.5, (), THRESHOLDS, (SoundWindow(0.0, 4.0, 0.5),)),
  }
  return json.loads(json.dumps(Verdict(**facts | changes).to_dict()))


def changed(*path, value) -> dict:
  """An entry with one value put in the place of another, or, for ..., taken away."""
  found = entry()
  inside = found
  for key in path[:-1]:
    inside = inside[key]
  if value is ...:
    del inside[path[-1]]
  else:
    inside[path[-1]] = value
  return found


def test_a_verdict_reproduces_itself_whatever_the_clock_and_the_place_say():
  then = entry()
  now = entry(timings={"total_s": 9.0}, run={"path": "/b/a.mp4", "frames": 4})
  for again in (then, now):
    found = reproduction.compare(then, again)
    assert found.reproduces and found.asides == () and found.largest == 0.0
  # The faces' and the sound's, two people, their sightings, the timeline, branches, thresholds of three.
  assert found.scores >= 15


@pytest.mark.parametrize(
  ("path", "place"),
  [
    (("deepfake_probability",), "deepfake_probability"),
    (("people", 0, "deepfake_probability"), "people[1].deepfake_probability"),
    (("people", 0, "boxes", 0, "probability"), "people[1].boxes[0.0 s].probability"),
    (("branches", "spatial", "probability"), "branches.spatial.probability"),
    (("faces", "deepfake_probability"), "faces.deepfake_probability"),
    (("timeline", 0, "probability"), "timeline[0.0 s].probability"),
  ],
)
def test_every_probability_may_move_by_a_thousandth_and_no_more(path, place):
  near = reproduction.compare(entry(), changed(*path, value=0.8009))
  assert near.reproduces and near.largest == pytest.approx(0.0009) and near.largest_place == place
  far = reproduction.compare(entry(), changed(*path, value=0.7985))
  assert [d.place for d in far.differences] == [place] and far.largest == pytest.approx(0.0015)
  assert str(far.differences[0]) == f"{place}: 0.8 then, 0.7985 now"


@pytest.mark.parametrize(
  ("path", "value"),
  [
    (("outcome",), "inconclusive"),
    (("is_deepfake",), False),
    (("deepfake_probability",), None),
    (("deepfake_probability",), float("nan")),
    (("reasons", 0, "code"), "between_thresholds"),
    (("reasons",), []),
    (("people",), []),
    (("people", 1, "frames_judged"), 2),
    (("people", 1, "boxes", 1, "reasons"), ["face_too_small"]),
    (("people", 0, "boxes", 0, "time_s"), 0.2),
    (("thresholds", "manipulated"), 0.72),
    (("file", "sha256"), "2" * 64),
    (("model", "sha256"), "2" * 64),
    (("sound",), None),
    (("sound", "windows", 0, "end_s"), 4.5),
    (("branches", "audio"), {"probability": 0.5, "weight": 0.5, "status": "ok"}),
    (("people",), ...),
  ],
)
def test_what_is_said_must_be_the_same(path, value):
  assert not reproduction.compare(entry(), changed(*path, value=value)).reproduces


@pytest.mark.parametrize(
  ("path", "value"),
  [
    (("file", "name"), "moved.mp4"),
    (("file", "media", "bit_rate"), 1200.0),
    (("file", "media", "codec"), "h264"),
    (("people", 0, "boxes", 0, "box"), [10.0, 10.0, 90.0, 99.5]),
    (("people", 0, "quality", "median_sharpness"), 0.3),
    (("reasons", 0, "message"), "Traces in 2 of 2 frames."),
    (("warnings",), ["The file is odd."]),
  ],
)
def test_what_a_decoder_or_a_sentence_says_is_told_and_no_failure(path, value):
  found = reproduction.compare(entry(), changed(*path, value=value))
  assert found.reproduces and len(found.asides) == 1


def test_people_are_compared_with_themselves_in_whatever_order_they_come():
  now = entry()
  now["people"].reverse()
  assert reproduction.compare(entry(), now).reproduces


def test_fields_that_were_added_later_are_no_difference():
  then, now = entry(), entry()
  now["novelty"] = now["faces"]["novelty"] = 1.0
  assert not reproduction.compare(then, now).reproduces
  then["schema_version"] = "1.1"
  assert reproduction.compare(then, now).reproduces
  assert reproduction.changed_run(then, now) == {"schema": ("1.1", verdict.SCHEMA_VERSION)}


def test_versions_and_devices_that_changed_are_told():
  now = entry()
  now["run"] = {"device": "Some GPU", "versions": {"jax": "0.12.0", "av": "15.0", "python": "3.12"}}
  assert reproduction.changed_run(entry(), now) == {
    "device": ("cpu", "Some GPU"),
    "jax": ("0.10.2", "0.12.0"),
  }
  assert reproduction.changed_run(entry(), entry()) == {}
  old = entry()
  del old["run"]
  assert reproduction.changed_run(old, now) == {}


def test_reports_of_one_of_several_and_of_lines_are_read(tmp_path):
  path, unread = tmp_path / "r.json", {"schema_version": "1.2", "file": {"name": "b"}, "error": {"code": "x"}}
  for text, count in (
    (json.dumps(entry(), indent=2), 1),
    (json.dumps([entry(), unread]), 2),
    (f"{json.dumps(entry())}\n{json.dumps(unread)}\n", 2),
  ):
    path.write_text(text)
    assert len(reproduction.read_report(path)) == count


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is no report"),
    ("{]", "is no JSON"),
    ("[]", "is no report"),
    ("[3]", "is no report"),
    ('{"schema_version": "1.0", "results": {}}', "is no report"),
    ('{"schema_version": "1.2", "file": {}, "outcome": "inconclusive"}', "is no report"),
    ('{"schema_version": "2.0", "file": {}, "error": {}}', "schema version 2.0"),
  ],
)
def test_what_is_no_report_is_told_in_a_sentence(tmp_path, text, message):
  path = tmp_path / "r.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as caught:
    reproduction.read_report(path)
  assert str(path) in str(caught.value)


def test_nothing_is_changed_by_comparing():
  then, now = entry(), changed("people", value=[])
  before = copy.deepcopy((then, now))
  reproduction.compare(then, now)
  assert (then, now) == before


def test_a_run_is_told_with_what_it_was_computed_with():
  versions = environment.versions()
  assert {"deepscan_jax", "python", "jax", "numpy", "av"} <= versions.keys()
  assert environment.MISSING not in versions.values()
  assert set(environment.device()) == {"device", "matmul_precision"}
