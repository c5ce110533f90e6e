import dataclasses
import datetime
import json
import os
import re
import stat
from html.parser import HTMLParser

import numpy as np
import pytest

from deepscan_jax import report, verdict
from deepscan_jax.verdict import (
  INCONCLUSIVE,
  LIKELY_AUTHENTIC,
  LIKELY_MANIPULATED,
  NOT_APPLICABLE,
  BranchVerdict,
  Evidence,
  Faces,
  Person,
  Reason,
  Sighting,
  Sound,
  SoundWindow,
  Thresholds,
  Verdict,
)

HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'\u202egpj.mp4"
ENCODER = "</script><script>alert(3)</script><!--"
CREATED = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)


def followed(number, probabilities, seed=0):
  rng = np.random.default_rng(seed)
  times = np.linspace(0, 10, len(probabilities))
  sightings, evidence = [], []
  for t, p in zip(times, probabilities, strict=True):
    reasons = () if p is not None else ("face_too_small",)
    sightings.append(Sighting(float(t), (10.0, 20.0, 110.0, 140.0), p, reasons))
    if p is not None:
      crop = rng.integers(0, 256, (28, 28, 3), np.uint8).repeat(8, 0).repeat(8, 1)
      evidence.append(Evidence(number, float(t), crop, rng.random((14, 14), np.float32), p))
  return Person(number, 0.8, tuple(sightings), {"size_px": 140.5}), evidence


def make(outcome=verdict.LIKELY_MANIPULATED, probability=0.8, people=2, frames=32, name=HOSTILE):
  tracks = []
  for number in range(1, people + 1):
    judged = [0.05 + 0.9 * i / frames for i in range(frames)]
    if frames > 4:
      judged[3] = None
    tracks.append(followed(number, judged, number))
  return Verdict(
    outcome=outcome,
    deepfake_probability=probability,
    frame_consistency_score=0.9,
    reasons=(Reason("x", f"Because {HOSTILE}"),),
    branches={"spatial": BranchVerdict(probability, 1.0), "audio": BranchVerdict(None, 0.0, "absent")},
    people=tuple(track for track, _ in tracks),
    thresholds=Thresholds(0.4, 0.7, 0.021),
    model={"name": "default", "version": "0.1.0", "sha256": "ab" * 32},
    file={
      "name": name,
      "bytes": 1234,
      "sha256": "cd" * 32,
      "kind": "video",
      "media": {
        "duration_s": 10.0,
        "width": 640,
        "height": 480,
        "encoder": ENCODER,
        "streams": [{"codec": "h264"}],
      },
    },
    timings={"decode": 0.5, "model": 0.25},
    warnings=(f"Careful {ENCODER}",),
    evidence=tuple(e for _, seen in tracks for e in seen),
  )


class Page(HTMLParser):
  """Collects elements, and complains of tags that do not nest."""

  VOID = frozenset({"meta", "img", "input", "br", "link"})

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.elements, self.open, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
    self.open.pop()

  def handle_data(self, data):
    self.texts.append((self.open[-1] if self.open else "", data))

  def all(self, tag):
    return [attributes for name, attributes in self.elements if name == tag]

  @property
  def text(self):
    return " ".join(data for tag, data in self.texts if tag not in ("script", "style"))


@pytest.fixture(scope="module")
def page():
  return Page(report.render_html(make(), created=CREATED))


def test_the_page_asks_for_nothing_outside_of_itself(page):
  for tag, attributes in page.elements:
    for name in ("src", "href", "action", "data", "poster", "srcset"):
      value = attributes.get(name)
      assert value is None or re.match(r"data:image/(png|jpeg);base64,|#", value), (
        f"<{tag} {name}={value[:60]!r}>"
      )
    assert tag not in ("link", "iframe", "object", "embed", "base")
  style = "".join(data for tag, data in page.texts if tag == "style")
  assert "@import" not in style and "url(" not in style
  policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
  assert policy.startswith("default-src 'none'")
  assert "http" not in policy


def test_text_from_the_file_stays_text(page):
  scripts = page.all("script")
  assert scripts == [{"type": "application/json", "id": "verdict-json"}, {}]
  assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
  assert all(image["src"].startswith("data:image/") for image in page.all("img"))
  # It is shown, letter by letter, with the direction override spelled out.
  assert "<script>alert(1)</script><img src=x onerror=alert(2)>'\\u202egpj.mp4" in page.text
  assert ENCODER in page.text


def test_the_policy_allows_the_pages_own_script_and_no_other(page):
  import base64
  import hashlib

  code = "".join(data for tag, data in page.texts if tag == "script" and not data.lstrip().startswith("{"))
  digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
  policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
  assert f"script-src 'sha256-{digest}'" in policy


def test_the_embedded_json_is_the_verdict(page):
  text = next(data for tag, data in page.texts if tag == "script" and data.lstrip().startswith("{"))
  assert "<" not in text
  assert json.loads(text) == make().to_dict()


def test_the_page_shows_what_it_promises(page):
  facts = ("80\u00a0%", "2.1\u00a0%", "ab" * 32, "cd" * 32, "6 May 2024, 07:08 UTC")
  words_of_ours = (
    "model attention, not proof",
    "What this can and cannot tell",
    "face too small (1)",
    "Absent",
  )
  for words in ("Likely manipulated", "Person 1", "Person 2", make().recommendation, *facts, *words_of_ours):
    assert words in page.text, words


def test_the_page_can_be_read_without_eyes_or_mouse(page):
  assert page.all("html") == [{"lang": "en"}]
  assert len(page.all("h1")) == 1
  assert all(image.get("alt") for image in page.all("img"))
  assert all(a.get("aria-label") for a in page.all("a") if "point" in (a.get("class") or ""))
  pictures = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
  assert len(pictures) == 2 and all(svg["role"] == "img" and svg["aria-label"] for svg in pictures)
  labels = {label["for"] for label in page.all("label")}
  assert {field["id"] for field in page.all("input")} == labels


def test_ids_are_unique_and_every_link_leads_somewhere():
  page = Page(report.render_html([make(), make(), report.Unread("b", "c", "d")]))
  ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
  assert len(ids) == len(set(ids))
  links = [a["href"][1:] for a in page.all("a") if "href" in a]
  assert links and set(links) <= set(ids)
  # Each judged face has a crop, and the chart's circle leads to it.
  assert sum("point" in (a.get("class") or "") for a in page.all("a")) == 2 * 2 * 31


def test_the_line_is_not_drawn_over_unjudged_faces(page):
  runs = [p["points"].split() for p in page.all("polyline")]
  assert [len(run) for run in runs] == [3, 28, 3, 28]
  assert sum("miss" in (s.get("class") or "") for s in page.all("span")) == 2


def test_32_frames_of_two_people_stay_below_3_megabytes():
  # The crops are noise, which JPEG can hardly shrink: faces take less.
  assert len(report.render_html(make())) < 3e6


def test_facts_are_in_words_and_units_of_people():
  facts = {"bit_rate": 429837, "fps": 25.0, "rotation_degrees": 90, "duration_s": 3.0, "color_space": None}
  answer = dataclasses.replace(
    make(people=1), file={"name": "a", "bytes": 1234, "media": facts}, timings={"hash_s": 0.0006}
  )
  shown = Page(report.render_html(answer)).text
  for words in ("430 kbit/s", "Frames per second", "90°", "3.00 s", "less than 0.01 s", "1,234 bytes"):
    assert words in shown, words
  # What a file does not tell is one line, not many.
  assert "Not stated" in shown and "color space" in shown and "not known" not in shown
  assert "at the median: 140 pixels in size" in shown
  assert shown.index("Bit rate") < shown.index("More that it says of itself") < shown.index("Rotation")


def test_close_thresholds_share_a_label():
  for low, labels in ((0.4, 2), (0.69, 1)):
    answer = dataclasses.replace(make(people=0), thresholds=Thresholds(low, 0.7, 0.05))
    page = Page(report.render_html(answer))
    assert sum("at" in (span.get("class") or "").split() for span in page.all("span")) == labels


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("outcome", verdict.OUTCOMES)
def test_every_outcome_makes_a_page_and_a_summary(outcome, frames):
  judged = outcome != verdict.NOT_APPLICABLE
  answer = make(outcome, 0.5 if judged else None, people=int(judged), frames=frames, name="a.mp4")
  page = Page(report.render_html(answer))
  assert report.OUTCOME_WORDS[outcome] in page.text
  assert ("calibrated probability" in page.text) == judged
  assert len(page.all("polyline")) == (judged and frames > 1)
  text = report.summary_text(answer, width=80)
  assert report.OUTCOME_WORDS[outcome] in text
  assert "\x1b" not in text
  assert all(len(line) <= 80 for line in text.splitlines())


OF_FACES, OF_SOUND = Thresholds(0.4, 0.7, 0.021), Thresholds(0.8, 0.9, 0.033)


def heard(*probabilities, moments=(), probability=None, reasons=(), window_s=4.0):
  """Windows end to end, and moments half a second after each other."""
  windows = tuple(SoundWindow(window_s * i, window_s * (i + 1), p) for i, p in enumerate(probabilities))
  seconds = tuple(SoundWindow(i / 2, i / 2 + 1, p) for i, p in enumerate(moments))
  if probability is None and probabilities:
    probability = sum(probabilities) / len(probabilities)
  outcome = NOT_APPLICABLE if probability is None else OF_SOUND.outcome(probability)
  return Sound(outcome, probability, reasons, OF_SOUND, windows, seconds)


def make_heard(sound, *, faces=None, people=0, kind="audio", **changes):
  """A verdict that the sound decides, unless nothing was heard."""
  decided = "sound" if sound.deepfake_probability is not None else changes.pop("decided_by", "faces")
  facts = {
    "outcome": sound.outcome,
    "deepfake_probability": sound.deepfake_probability,
    "thresholds": OF_SOUND,
    "reasons": (),
    "warnings": (),
    "sound": sound,
    "faces": faces,
    "decided_by": decided,
    "file": {"name": "a.mp4", "kind": kind, "media": {"duration_s": 8.0}},
  }
  if not people:
    facts["frame_consistency_score"] = None
  return dataclasses.replace(make(people=people, name="a.mp4"), **facts | changes)


def classes(page, tag, word):
  """The attributes of elements of a class."""
  return [a for a in page.all(tag) if word in (a.get("class") or "").split()]


def test_a_recording_is_shown_without_anybody():
  moments = [0.2] * 4 + [0.95] * 4 + [0.3] * 4 + [0.92]
  answer = make_heard(heard(0.85, 0.97, moments=moments))
  page = Page(report.render_html(answer))
  for words in (
    "Likely manipulated",
    "91\u00a0%",
    "The sound was judged.",
    "2 stretches of up to 4.0\u00a0s",
  ):
    assert words in page.text, words
  # Windows 4 to 7 and 12 of one second reach the threshold.
  assert "Marked as likely manipulated: 2.0 to 4.5\u00a0s, 6.0 to 7.0\u00a0s." in page.text
  assert len(classes(page, "rect", "marked")) == 2
  places = [(float(a["x"]), float(a["width"])) for a in classes(page, "rect", "marked")]
  assert places == [(25.0, 31.25), (75.0, 12.5)]
  assert len(classes(page, "span", "stretch")) == 2 and len(classes(page, "a", "point")) == len(moments)
  assert [len(line["points"].split()) for line in page.all("polyline")] == [len(moments)]
  shown = page.text.lower()
  assert not any(word in shown for word in ("person 1", "region map", "beauty filters", "frames agree"))
  assert "pictures reach it" not in shown and "stretches of sound reach it" in shown
  assert "3.3\u00a0%" in page.text and page.all("img") == []


def test_what_decided_is_told_and_each_part_keeps_its_own_thresholds():
  """The same faces are drawn alike, whoever decides for the file."""
  faces = Faces(LIKELY_AUTHENTIC, 0.3, (), OF_FACES)
  by_sound = make_heard(heard(0.95, 0.97, moments=[0.96] * 15), faces=faces, people=2, kind="video")
  by_faces = dataclasses.replace(
    make(LIKELY_MANIPULATED, 0.75, name="a.mp4"), sound=heard(0.75, 0.85, moments=[0.75, 0.85])
  )
  pages = [Page(report.render_html(answer)) for answer in (by_sound, by_faces)]
  told = "The verdict is that of the {}; the {} alone would be called {} ({})."
  assert told.format("sound", "faces", "likely authentic", "30\u00a0%") in pages[0].text
  assert told.format("faces", "sound", "inconclusive", "80\u00a0%") in pages[1].text
  faces = [[a["class"] for a in classes(page, "a", "point") if "href" in a] for page in pages]
  assert faces[0] == faces[1] and any("likely_manipulated" in name for name in faces[0])
  captions = [[a["class"] for a in page.all("b")] for page in pages]
  assert captions[0] == captions[1]
  # 0.75 and 0.85 of sound lie below its thresholds, and would be manipulated by those of the faces.
  heard_in = [a["class"].split()[1] for a in classes(pages[1], "a", "point") if "href" not in a]
  assert heard_in == [LIKELY_AUTHENTIC, INCONCLUSIVE]
  assert all(svg["aria-label"] for page in pages for svg in page.all("svg") if svg.get("role") == "img")
  # What decided stands first, and the axis is that of the file for all.
  assert pages[0].text.index("Sound") < pages[0].text.index("Person 1")
  assert pages[1].text.index("Person 1") < pages[1].text.index("stretches of up to")
  for page in pages:
    both = (
      "A face is called likely manipulated from 70\u00a0%",
      "Sound is called likely manipulated from 90\u00a0%",
    )
    assert all(words in page.text for words in both)
    assert sum(words == "10 s" for _, words in page.texts) == 3


@pytest.mark.parametrize(
  ("answer", "words"),
  [
    (make(name="a.mp4"), "Only the faces were judged; this model does not judge sound."),
    (
      dataclasses.replace(make(name="a.mp4"), branches={"lipsync": BranchVerdict(0.5, 1.0)}),
      "The faces were judged, together with what is heard while they are seen.",
    ),
    (
      dataclasses.replace(make(name="a.jpg"), file={"name": "a.jpg", "kind": "image"}),
      "The faces in the picture were judged.",
    ),
    (
      dataclasses.replace(make(name="a.mp4"), sound=heard(reasons=("no_sound",))),
      "Only the faces were judged, not the sound: the file has none.",
    ),
    (
      dataclasses.replace(make(name="a.mp4"), sound=heard(reasons=("sound_too_short",))),
      "Only the faces were judged, not the sound: it is too short.",
    ),
    (
      dataclasses.replace(make(name="a.mp4"), sound=heard(reasons=("silent",))),
      "Only the faces were judged, not the sound: it is silent throughout.",
    ),
    (make_heard(heard(0.5), kind="video"), "Only the sound was judged; this model does not look at faces."),
    (
      make_heard(heard(0.5), kind="video", faces=Faces(NOT_APPLICABLE, None, ("no_face",), OF_FACES)),
      "Only the sound was judged: no face was found.",
    ),
    (
      make_heard(
        heard(0.5), kind="video", people=1, faces=Faces(NOT_APPLICABLE, None, ("face_too_small",), OF_FACES)
      ),
      "Only the sound was judged: none of the faces could be judged.",
    ),
    (make_heard(heard(0.5)), "The sound was judged."),
  ],
)
def test_what_was_looked_at_is_told_truthfully(answer, words):
  assert words in Page(report.render_html(answer)).text
  assert words in " ".join(report.summary_text(answer, width=400).split())


def test_the_printed_words_tell_of_the_sound():
  answer = make_heard(heard(0.85, 0.99, moments=[0.2, 0.95, 0.95, 0.2]))
  lines = report.summary_text(answer, width=200).replace("\u00a0", " ").splitlines()
  assert lines[1] == "  Likely manipulated  probability of manipulation 92 %; the threshold is 90 %"
  assert (
    "  Sound               likely manipulated, 92 %; the threshold is 90 %; marked: 0.5 to 2.0 s" in lines
  )
  assert not any("Person" in line or "Frames agree" in line for line in lines)
  unheard = dataclasses.replace(make(name="a.mp4"), sound=heard(reasons=("silent",)))
  assert not any(line.startswith("  Sound ") for line in report.summary_text(unheard).splitlines())


def test_a_file_that_holds_nothing_to_judge_tells_both_reasons_and_has_no_empty_sections():
  reasons = (Reason("no_face", "No face was found."), Reason("silent", "The sound is silent throughout."))
  faces = Faces(NOT_APPLICABLE, None, ("no_face",), OF_FACES)
  answer = make_heard(heard(reasons=("silent",)), faces=faces, kind="video", reasons=reasons, decided_by=None)
  page = Page(report.render_html(answer))
  assert "No face was found." in page.text and "The sound is silent throughout." in page.text
  assert classes(page, "section", "person") == [] and "calibrated probability" not in page.text
  assert "Judged" not in report.summary_text(answer)


def test_the_chart_of_a_long_file_has_a_point_for_each_stretch():
  starts = np.linspace(0, 3596, 16)
  windows = tuple(SoundWindow(s, s + 4, 0.95 if i == 3 else 0.1) for i, s in enumerate(starts))
  moments = tuple(
    SoundWindow(s + x, s + x + 1, 0.95 if i == 3 else 0.1) for i, s in enumerate(starts) for x in range(4)
  )
  sound = Sound(LIKELY_AUTHENTIC, 0.15, (), OF_SOUND, windows, moments)
  page = Page(report.render_html(make_heard(sound)))
  assert len(classes(page, "a", "point")) == 16 and classes(page, "span", "stretch") == []
  assert "What lies between them was not listened to." in page.text
  (mark,) = classes(page, "rect", "marked")
  assert float(mark["width"]) == 0.4  # still to be seen
  assert "Marked as likely manipulated: 11:59.2 to 12:03.2." in page.text


def test_many_marks_are_not_all_named():
  sound = heard(*[0.95, 0.1] * 12, probability=0.5)
  assert "and 4 more" in Page(report.render_html(make_heard(sound))).text


def test_files_that_their_sound_decides_are_named_in_the_overview():
  answers = [make_heard(heard(0.95), kind="video"), make_heard(heard(0.95)), make(name="a")]
  page = Page(report.render_html(answers))
  assert page.text.count("Likely manipulated, by its sound") == 1
  assert "Beauty filters" in page.text and "Voices made by engines" in page.text


def test_frames_between_those_of_a_window_miss_nothing():
  answer = make(people=1, name="a.mp4")
  (person,) = answer.people
  sightings = [
    dataclasses.replace(s, probability=None, reasons=()) if i % 2 else s
    for i, s in enumerate(person.sightings)
  ]
  answer = dataclasses.replace(answer, people=(dataclasses.replace(person, sightings=tuple(sightings)),))
  page = Page(report.render_html(answer))
  assert len(page.all("polyline")) == 1 and classes(page, "span", "miss") == []
  assert "Those between were seen as parts of the same stretch of film." in page.text


def test_the_region_map_keeps_its_scale():
  import base64

  import cv2

  def decoded(region_map):
    data = base64.b64decode(report.map_uri(region_map).partition(",")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

  weak, strong = decoded(np.full((4, 4), 0.1)), decoded(np.full((4, 4), 1.0))
  assert not decoded(np.zeros((4, 4)))[..., 3].any()
  assert weak[0, 0, 3] < strong[0, 0, 3]
  assert not np.array_equal(weak[..., :3], strong[..., :3])
  assert not decoded(np.full((4, 4), np.nan))[..., 3].any()


def test_a_file_name_cannot_steer_the_terminal():
  answer = make(name="a\x1b]0;owned\x07\n\u202eb.mp4", people=0)
  first, *_ = report.summary_text(answer, width=80).splitlines()
  assert first.startswith(r"a\x1b]0;owned\x07\n\u202eb.mp4")
  unread = report.summary_text(report.Unread("a\x1b[2J", "c", "broken\x07"), width=80)
  assert unread.isprintable() is False and "\x1b" not in unread and "\x07" not in unread


def test_colour_marks_the_outcome_only_where_it_is_wanted():
  assert "\x1b[1;31mLikely manipulated\x1b[0m" in report.summary_text(make(name="a"), color=True, width=80)


@pytest.mark.parametrize(
  ("probability", "words"),
  [(0.0, "<1"), (0.004, "<1"), (0.01, "1"), (0.994, "99"), (0.996, ">99"), (1, ">99")],
)
def test_percent_never_claims_certainty(probability, words):
  assert report.percent(probability) == f"{words}\u00a0%"


@pytest.mark.parametrize(("least", "most"), [(4, 11), (2, 6)])
@pytest.mark.parametrize(("start", "end"), [(0, 10), (0.3, 0.9), (5, 3700), (0, 0.01), (-0.5, 0.2)])
def test_ticks_are_few_and_inside(start, end, least, most):
  ticks = report.round_ticks(start, end, least=least)
  assert least - 1 <= len(ticks) <= most
  assert ticks == sorted(ticks) and start - 1e-6 <= ticks[0] and ticks[-1] <= end + 1e-6
  assert "-0.0," not in str(ticks)


def test_json_is_one_object_for_one_file_and_a_list_for_several(tmp_path):
  answer, unread = make(), report.Unread("b.mp4", "truncated", "It ends early.")
  report.write_json(answer, tmp_path / "one.json")
  report.write_json([answer, unread], tmp_path / "two.json")
  assert json.loads((tmp_path / "one.json").read_text()) == answer.to_dict()
  first, second = json.loads((tmp_path / "two.json").read_text())
  assert first == answer.to_dict()
  assert second["error"] == {"code": "truncated", "message": "It ends early."}
  assert second["file"] == {"name": "b.mp4"}


def test_a_report_appears_whole_or_not_at_all(tmp_path, monkeypatch):
  target = tmp_path / "r.json"
  target.write_text("before")

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    report.write_json(make(), target)
  assert target.read_text() == "before"
  assert list(tmp_path.iterdir()) == [target]


def test_a_report_has_the_mode_of_any_new_file(tmp_path):
  report.write_html(make(people=0), tmp_path / "r.html")
  (tmp_path / "plain").touch()
  assert stat.S_IMODE((tmp_path / "r.html").stat().st_mode) == stat.S_IMODE(
    (tmp_path / "plain").stat().st_mode
  )


def of_several_branches() -> Verdict:
  branches = {
    "spatial": BranchVerdict(0.9, 0.6, "ok", 1.75, 0.4),
    "audio": BranchVerdict(0.3, 0.4, "ok", -0.5, 0.86),
    "lipsync": BranchVerdict(None, 0.0, "absent"),
  }
  return dataclasses.replace(make(name="a.mp4"), branches=branches)


def test_the_effect_of_each_branch_is_shown():
  page = Page(report.render_html(of_several_branches()))
  assert "Its effect" in page.text and "+1.75" in page.text and "\N{MINUS SIGN}0.50" in page.text
  # The strongest fills its side, to the right where it speaks for manipulation.
  bars = [a["style"] for a in page.all("span") if a.get("class") in (LIKELY_MANIPULATED, LIKELY_AUTHENTIC)]
  assert bars == ["left:50.0%;width:50.0%", "left:35.7%;width:14.3%"]
  told = " ".join(report.summary_text(of_several_branches(), width=200).replace("\u00a0", " ").split())
  assert "spatial +1.75 (without it 40 %), audio \N{MINUS SIGN}0.50 (without it 86 %)" in told
  alone = Page(report.render_html(make(name="a.mp4")))
  assert "Its effect" not in alone.text and "Without a branch" not in report.summary_text(make())


def test_a_persons_marked_times_are_shaded_and_named():
  answer = make(name="a.mp4", people=1, frames=11)
  page = Page(report.render_html(answer))
  # From 0.7 on: the frames from 8 s on, each half a second to either side.
  (mark,) = classes(page, "rect", "marked")
  assert (float(mark["x"]), float(mark["width"])) == (75.0, 25.0)
  assert "Marked as likely manipulated: 7.5 to 10.0" in page.text.replace("\u00a0", " ")
  assert "marked: 7.5 to 10.0" in report.summary_text(answer, width=300)
  picture = make(name="a.jpg", people=1, frames=1)
  assert "marked" not in report.summary_text(picture)


def test_what_to_do_about_a_reason_stands_behind_it():
  small = Reason(
    "face_too_small", "The largest face is 41 px across.", "Use a larger copy.", {"found_px": 41}
  )
  answer = dataclasses.replace(make(NOT_APPLICABLE, None, people=0, name="a.jpg"), reasons=(small,))
  for text in (Page(report.render_html(answer)).text, report.summary_text(answer, width=300)):
    assert "The largest face is 41 px across. Use a larger copy." in text


def test_what_a_verdict_is_worth_is_told_where_it_was_asked():
  rates = verdict.OutcomeRates((0.75, 0.2, 0.05), (0.3, 0.2, 0.5), 200, 100)
  answer = dataclasses.replace(make(name="a.mp4"), rates=rates, prevalence=0.01)
  for text in (Page(report.render_html(answer)).text, report.summary_text(answer, width=900)):
    text = text.replace("\u00a0", " ")
    assert "Where 1 % of the files are fakes, the probability of this one is 3.9 %" in text
    assert "of all that is called likely manipulated 9.2 %" in text
    assert "of 10,000 files 495 are false alarms and 50 fakes are found" in text
  unknown = dataclasses.replace(answer, rates=None)
  assert "deepscan calibrate does that" in report.worth_sentence(unknown)
  nothing = dataclasses.replace(make(NOT_APPLICABLE, None, name="a.mp4"), prevalence=0.5)
  assert report.worth_sentence(nothing).endswith("nothing was judged, so nothing is known.")
  assert "Where" not in report.summary_text(make(name="a.mp4")) and report.worth_sentence(make()) == ""


def test_how_far_a_verdict_holds_is_a_table_and_a_line():
  def ladder(words, *outcomes):
    steps = (
      verdict.Rescored(level, HOSTILE, outcome, None if outcome == NOT_APPLICABLE else 0.1 * level)
      for level, outcome in enumerate(outcomes, start=1)
    )
    return verdict.Ladder(words, words, tuple(steps), LIKELY_MANIPULATED)

  ladders = {
    "blur": ladder("blur", LIKELY_MANIPULATED, INCONCLUSIVE, NOT_APPLICABLE),
    "jpeg": ladder(HOSTILE, LIKELY_MANIPULATED, LIKELY_MANIPULATED, LIKELY_MANIPULATED),
  }
  stability = verdict.Stability(LIKELY_MANIPULATED, 0.8, 16, ladders)
  answer = dataclasses.replace(make(name="a.mp4"), stability=stability)
  found = Page(report.render_html(answer, created=CREATED))
  assert "holds at all levels of 1 of 2 kinds of damage" in found.text
  assert "level 2, to inconclusive" in found.text and "never" in found.text and "not judged" in found.text
  assert len(found.all("script")) == len(Page(report.render_html(make(), created=CREATED)).all("script"))
  line = " ".join(report.summary_text(answer).split())
  assert "Stability The outcome (likely manipulated) holds at all levels of 1 of 2 kinds" in line
  facts = json.loads(json.dumps(report.to_json(answer), allow_nan=False))["stability"]
  assert facts["weakest"] == "blur" and facts["perturbations"]["blur"]["becomes"] == INCONCLUSIVE
  assert facts["perturbations"]["jpeg"]["breaks_at"] is None
  assert "How far the verdict holds" not in report.render_html(make(), created=CREATED)
