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
from deepscan_jax.verdict import BranchVerdict, Evidence, Person, Reason, Sighting, Thresholds, Verdict

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


def test_the_region_map_keeps_its_scale():
  import base64

  import cv2

  def decoded(region_map):
    data = base64.b64decode(report._map_png(region_map).partition(",")[2])
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


@pytest.mark.parametrize(("start", "end"), [(0, 10), (0.3, 0.9), (5, 3700), (0, 0.01)])
def test_ticks_are_few_and_inside(start, end):
  ticks = report._ticks(start, end)
  assert 3 <= len(ticks) <= 11
  assert ticks == sorted(ticks) and start - 1e-6 <= ticks[0] and ticks[-1] <= end + 1e-6


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
