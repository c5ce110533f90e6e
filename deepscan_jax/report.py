"""Shows verdicts to people and machines: JSON, one self-contained page of HTML, a few lines for a terminal.

Names and metadata come from files that nobody vouches for. In the page every text passes through `tag`, which
escapes it, and the page's policy lets no script run but ours; in the terminal it passes through `printable`.
"""

import base64
import collections
import dataclasses
import datetime
import functools
import hashlib
import html
import itertools
import json
import shutil
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from deepscan_jax import verdict as verdicts
from deepscan_jax.files import write_whole
from deepscan_jax.verdict import (
  FACES,
  SOUND,
  BranchVerdict,
  Evidence,
  Person,
  Rescored,
  Sighting,
  SoundWindow,
  Stability,
  Thresholds,
  Verdict,
)
from deepscan_jax.version import __version__

JPEG_QUALITY = 82
DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
NOT_KNOWN = "not known"

OUTCOME_WORDS = {
  verdicts.LIKELY_AUTHENTIC: "Likely authentic",
  verdicts.INCONCLUSIVE: "Inconclusive",
  verdicts.LIKELY_MANIPULATED: "Likely manipulated",
  verdicts.NOT_APPLICABLE: "Not applicable",
}

LIMITS = (
  "A score is the opinion of a statistical model, not a finding of fact. It should never be the only ground "
  "of a decision about a person or a story.",
  "A low score does not prove that a file is authentic. Methods that the model was not trained for, heavy "
  "compression and repeated re-encoding can all go unseen.",
  "A high score does not prove intent, or even forgery.",
  "Only what the table of branches calls judged was looked at. Everything else in the file, such as the "
  "background, captions, what is said, or whether a scene was staged, was not judged.",
  "The false-positive rate was measured on single pictures, or stretches of sound, of the validation data. "
  "For whole files, which are judged by all of theirs together, and on other sources it can be higher or "
  "lower.",
)
# Of what is judged in some files only.
LIMITS_OF = {
  FACES: (
    "Faces that were made whole, by generators unlike those it learnt from, can go unseen. Beauty filters, "
    "strong retouching, unusual light and poor copies can raise the score of a face.",
    "The coloured maps show where the model looks for traces of blending: model attention, not proof.",
  ),
  SOUND: (
    "Voices made by engines that the model never heard can go unseen. Music, noise, studio effects and "
    "telephone lines can move the score of a voice either way.",
  ),
}


@dataclasses.dataclass(frozen=True)
class Unread:
  """Stands in the place of a verdict for a file that could not be read.

  Attributes:
    name: of the file, without its folder.
    code: stable, for machines.
    message: one sentence.
  """

  name: str
  code: str
  message: str

  def to_dict(self) -> dict:
    """The JSON that stands in the place of the verdict's."""
    return {
      "schema_version": verdicts.SCHEMA_VERSION,
      "file": {"name": self.name},
      "error": {"code": self.code, "message": self.message},
    }


Answer = Verdict | Unread


def to_json(answers: Answer | Sequence[Answer]) -> dict | list[dict]:
  """Plain values for `json.dumps`: an object for one answer, a list for a sequence."""
  if isinstance(answers, Answer):
    return answers.to_dict()
  return [answer.to_dict() for answer in answers]


def write_json(answers: Answer | Sequence[Answer], path: str | Path) -> None:
  """Writes one answer as an object, or a sequence as a list; the file appears whole or not at all.

  Raises:
    OSError: it cannot be written.
  """
  write_whole(path, json.dumps(to_json(answers), indent=2, allow_nan=False) + "\n")


def write_html(
  answers: Answer | Sequence[Answer], path: str | Path, *, created: datetime.datetime | None = None
) -> None:
  """Writes one page that shows all answers; the file appears whole or not at all.

  Args:
    answers: one or several.
    path: of the page. It holds everything it needs, pictures included, and asks for nothing else.
    created: the time that the page names as its own; None is now.

  Raises:
    OSError: it cannot be written.
  """
  write_whole(path, render_html(answers, created=created))


def summary_text(answer: Answer, *, color: bool = False, width: int | None = None) -> str:
  """A few aligned lines about one answer, for a terminal.

  Args:
    answer: of one file.
    color: whether to mark the outcome with terminal colours.
    width: columns; None takes the terminal's, at most 100.
  """
  width = width or min(100, shutil.get_terminal_size().columns)
  if isinstance(answer, Unread):
    return f"{printable(answer.name)}\n{_line('Could not be read', answer.message, width)}"
  if answer.deepfake_probability is None:
    score = "nothing was judged"
  else:
    score = f"probability of manipulation {_score(answer.deepfake_probability, answer.thresholds)}"
  lines = [_line(OUTCOME_WORDS[answer.outcome], score, width)]
  if color:
    code = {verdicts.LIKELY_AUTHENTIC: 32, verdicts.INCONCLUSIVE: 33, verdicts.LIKELY_MANIPULATED: 31}
    words = OUTCOME_WORDS[answer.outcome]
    lines[0] = lines[0].replace(words, f"\x1b[1;{code.get(answer.outcome, 36)}m{words}\x1b[0m", 1)
  if judged := _judged(answer):
    lines.append(_line("Judged", judged, width))
  for person in answer.people:
    first, last = person.sightings[0].time_s, person.sightings[-1].time_s
    score = "not judged" if person.deepfake_probability is None else percent(person.deepfake_probability)
    seen = f"{score}, {person.judged} of {_sightings(person)} judged"
    if last > first:
      seen += f", {clock(first)} to {clock(last)}"
      if marked := person.marked(_of_faces(answer)):
        seen += f"; marked: {_places(marked)}"
    lines.append(_line(f"Person {person.id}", seen, width))
  if answer.sound and answer.sound.deepfake_probability is not None:
    lines.append(_line("Sound", _sound_line(answer), width))
  if answer.frame_consistency_score is not None:
    lines.append(_line("Frames agree", f"{answer.frame_consistency_score:.2f} (1 is full agreement)", width))
  if contributions := _contributions(answer):
    lines.append(_line("Without a branch", contributions, width))
  if answer.at_prevalence:
    lines.append(_line("What it is worth", worth_sentence(answer), width))
  if answer.stability:
    lines.append(_line("Stability", stability_sentence(answer.stability), width))
  lines += [_line("Reason", reason.text, width) for reason in answer.reasons]
  lines += [_line("Note", warning, width) for warning in answer.warnings]
  lines.append(_line("What next", answer.recommendation, width))
  name = printable(_name(answer))
  about = _about(answer.file)
  heading = f"\x1b[1m{name}\x1b[0m" if color else name
  return "\n".join([f"{heading}  ({about})" if about else heading, *lines])


def render_html(answers: Answer | Sequence[Answer], *, created: datetime.datetime | None = None) -> str:
  """The page that `write_html` writes."""
  several = [answers] if isinstance(answers, Answer) else list(answers)
  title = _name(several[0]) if len(several) == 1 else f"{len(several)} files"
  script = Html(_asset("report.js"))
  main = tag(
    "main",
    _overview(several) if len(several) > 1 else "",
    *(_article(answer, number, heading=len(several) == 1) for number, answer in enumerate(several, start=1)),
    _limits(several),
    _embedded_json(answers),
    id="main",
  )
  return page(
    tag("a", "Skip to the verdict", href="#main", class_="skip"),
    masthead("Deepfake analysis report", created or datetime.datetime.now(datetime.UTC)),
    main,
    colophon(),
    tag("div", id="preview", aria_hidden="true", hidden=True),
    tag("script", script),
    title=f"Deepfake report: {title}",
    script=script,
  )


def page(*body: object, title: str, script: str = "", style: str = "", sound: bool = False) -> str:
  """A page of HTML that holds all that it needs, under a policy that keeps it from asking for anything else.

  Args:
    body: what is inside of its body.
    title: of the page.
    script: the one script that may run; it has to be in the body too. "" is none at all.
    style: CSS behind that which all pages have.
    sound: whether it may play the sound that it holds.
  """
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    + ("media-src data:; " if sound else "")
    + (f"script-src 'sha256-{digest}'; " if script else "")
    + "base-uri 'none'; form-action 'none'"
  )
  head = tag(
    "head",
    tag("meta", charset="utf-8"),
    tag("meta", http_equiv="Content-Security-Policy", content=policy),
    tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
    tag("meta", name="referrer", content="no-referrer"),
    tag("meta", name="generator", content=f"deepscan_jax {__version__}"),
    tag("title", title),
    tag("style", Html(_asset("report.css") + style)),
  )
  return "<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


def percent(probability: float) -> str:
  """A probability for people: whole percents, never 0 % or 100 %; with a no-break space."""
  whole = f"{100 * probability:.0f}"
  return {"0": "<1", "100": ">99"}.get(whole, whole) + "\N{NO-BREAK SPACE}%"


def clock(time_s: float) -> str:
  """A time in a file: "3.20 s" in the first minute, "1:03.2" later."""
  return f"{time_s:.2f} s" if time_s < 60 else _minutes(time_s)


def printable(text: object) -> str:
  """Returns the text with control and direction characters spelled out: it can steer no terminal."""
  return "".join(
    c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
    for c in str(text)
  )


class Html(str):
  """Text that is HTML already; every other str is escaped by `tag`."""

  __slots__ = ()


_VOID = frozenset({"img", "input", "meta", "rect", "line", "polyline"})


def tag(_name: str, *children: object, **attributes: object) -> Html:
  """Returns an HTML element.

  Args:
    _name: of the element.
    children: what is inside; escaped, unless it is Html.
    attributes: escaped; None and False leave one out, True has no value. An underscore stands for a dash, one
      at the end for nothing (class_, for_).
  """
  parts = [f"<{_name}"]
  for key, value in attributes.items():
    if value is not None and value is not False:
      name = key.removesuffix("_").replace("_", "-")
      parts.append(f" {name}" if value is True else f' {name}="{_escape(value)}"')
  parts.append(">")
  if _name in _VOID:
    # In SVG these have to be closed, in HTML the stroke does no harm.
    return Html("".join(parts)[:-1] + "/>")
  parts += [child if isinstance(child, Html) else _escape(child) for child in children]
  return Html("".join(parts) + f"</{_name}>")


def masthead(words: str, created: datetime.datetime) -> Html:
  """The line at the top of a page: what it is, and when it was made."""
  stamp = created.astimezone(datetime.UTC)
  return tag(
    "header",
    tag("p", tag("span", "deepscan", class_="wordmark"), f" {words}"),
    tag("p", "Made ", tag("time", f"{stamp:%-d %B %Y, %H:%M} UTC", datetime=f"{stamp:%Y-%m-%dT%H:%M:%SZ}")),
    class_="masthead",
  )


def colophon() -> Html:
  """The line at the end of a page."""
  return tag(
    "footer",
    tag("p", f"Made with deepscan_jax {__version__}. This page asks nothing of the network."),
    class_="colophon",
  )


def jpeg_uri(image: np.ndarray) -> str:
  """The address of an img element that holds the picture itself, uint8 RGB [height, width, 3]."""
  _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
  return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def map_uri(region_map: np.ndarray) -> str:
  """The address of an img element that holds a region map, float [height, width].

  It is transparent where the map is 0; the scale is the map's own 0..1, never stretched.
  """
  values = np.clip(np.nan_to_num(np.asarray(region_map, np.float32)), 0, 1)
  colours = cv2.applyColorMap((255 * values).astype(np.uint8), cv2.COLORMAP_INFERNO)
  # In proportion to the map: a weak signal has to look weak on a face.
  alpha = (255 * 0.85 * values).astype(np.uint8)
  _, data = cv2.imencode(".png", np.dstack([colours, alpha]))
  return "data:image/png;base64," + base64.b64encode(data).decode()


def _escape(value: object) -> str:
  return html.escape(printable(value))


def _overview(answers: Sequence[Answer]) -> Html:
  rows = []
  for number, answer in enumerate(answers, start=1):
    outcome, words, score = "unread", "Could not be read", DASH
    if isinstance(answer, Verdict):
      outcome, words = answer.outcome, OUTCOME_WORDS[answer.outcome]
      words += ", by its sound" if answer.decided_by == SOUND and answer.file.get("kind") != "audio" else ""
      score = DASH if answer.deepfake_probability is None else percent(answer.deepfake_probability)
    link = tag("a", tag("bdi", _name(answer)), href=f"#file-{number}")
    outcome_cell = tag("td", _symbol(outcome), words, class_=f"mark {outcome}")
    rows.append(tag("tr", tag("th", link, scope="row"), outcome_cell, tag("td", score, class_="number")))
  header = tag("tr", *(tag("th", text, scope="col") for text in ("File", "Verdict", "Probability")))
  table = tag("table", tag("thead", header), tag("tbody", *rows), class_="overview")
  return tag("section", tag("h1", f"{len(answers)} files"), table, class_="card")


def _article(answer: Answer, number: int, *, heading: bool) -> Html:
  title = tag("h1" if heading else "h2", tag("bdi", _name(answer)), class_="file-name")
  if isinstance(answer, Unread):
    words = tag("p", _symbol("unread"), "Could not be read", class_="words")
    band = tag("section", words, tag("p", answer.message, class_="advice"), class_="band unread")
    return tag("article", title, band, id=f"file-{number}")
  about = _about(answer.file)
  people = (_person(answer, person, f"f{number}-p{person.id}") for person in answer.people)
  sections = [Html("".join(people)), _sound(answer, f"f{number}-sound")]
  return tag(
    "article",
    tag("header", title, tag("p", about, class_="about") if about else ""),
    _band(answer),
    *(sections if answer.decided_by != SOUND else reversed(sections)),
    _stability(answer),
    _branches(answer),
    _facts(answer),
    id=f"file-{number}",
  )


def _band(answer: Verdict) -> Html:
  words = tag("p", _symbol(answer.outcome), OUTCOME_WORDS[answer.outcome], class_="words")
  inside = [tag("h2", "Verdict", class_="unseen"), words]
  if answer.deepfake_probability is not None:
    figure = tag("strong", percent(answer.deepfake_probability))
    inside.append(tag("p", figure, " calibrated probability of manipulation", class_="figure"))
    inside.append(_scale(answer))
    inside.append(tag("p", _judged(answer), class_="reason"))
    parts = {FACES: answer.faces, SOUND: answer.sound}
    inside += (tag("p", _called(parts[name].thresholds, name), class_="fine") for name in answer.judged)
  for reason in answer.reasons:
    inside.append(tag("p", reason.text, class_="reason"))
  if answer.at_prevalence:
    inside.append(tag("p", worth_sentence(answer), class_="reason"))
  inside.append(tag("p", answer.recommendation, class_="advice"))
  for warning in answer.warnings:
    inside.append(tag("p", tag("strong", "Note: "), warning, class_="reason"))
  return tag("section", *inside, class_=f"band {answer.outcome}")


def worth_sentence(answer: Verdict) -> str:
  """What a verdict is worth at the prevalence that was said, in a sentence or two; "" where none was."""
  worth = answer.at_prevalence
  if worth is None:
    return ""
  told = f"Where {100 * worth['prevalence']:g}\N{NO-BREAK SPACE}% of the files are fakes"
  if worth["probability"] is None:
    return f"{told}: nothing was judged, so nothing is known."
  told += f", the probability of this one is {_small_percent(worth['probability'])}"
  if worth["share_of_fakes"] is None:
    return (
      f"{told}. How often this model calls validation examples what it called this file was not stored with "
      "it; deepscan calibrate does that."
    )
  low, high = worth["share_of_fakes_interval"]
  return (
    f"{told}, and of all that is called {OUTCOME_WORDS[answer.outcome].lower()} "
    f"{_small_percent(worth['share_of_fakes'])} ({_small_percent(low)} to {_small_percent(high)}) is fake; "
    f"of 10,000 files {worth['false_alarms_per_10000']:.0f} are false alarms and "
    f"{worth['fakes_found_per_10000']:.0f} fakes are found. Measured on single validation examples, the real "
    "ones of which set the thresholds: expect more false alarms where files come from elsewhere."
  )


def _small_percent(share: float) -> str:
  """A share with two significant digits, for those that are near 0."""
  return percent(share) if share >= 0.095 else f"{100 * share:.2g}\N{NO-BREAK SPACE}%"


_KINDS = {FACES: ("A face", "pictures"), SOUND: ("Sound", "stretches of sound")}


def _called(thresholds: Thresholds, part: str) -> str:
  """What the thresholds of a part mean."""
  what, single = _KINDS[part]
  return (
    f"{what} is called likely manipulated from {percent(thresholds.manipulated)} on, a threshold set so that "
    f"at most {100 * thresholds.false_positive_rate:.2g}\N{NO-BREAK SPACE}% of authentic validation {single} "
    f"reach it: a rate of single {single}, not of whole files. Below {percent(thresholds.inconclusive)} it "
    "is called likely authentic; between the two, inconclusive."
  )


# Branches that hear, where sound is not judged by itself.
_HEARING = frozenset({"audio", "lipsync"})
_UNHEARD = {
  "no_sound": "the file has none",
  "sound_too_short": "it is too short",
  "silent": "it is silent throughout",
  "narrow_band": "it was recorded at 8 kHz, or went through a telephone",
}


def _judged(answer: Verdict) -> str:
  """What was looked at and what decided, in a sentence or two; "" where nothing was judged."""
  kind = answer.file.get("kind")
  if len(answer.judged) == 2:
    first, second = answer.judged
    other = {FACES: answer.faces, SOUND: answer.sound}[second]
    return (
      f"The faces and the sound were judged, each by itself. The verdict is that of the {first}; the "
      f"{second} alone would be called {OUTCOME_WORDS[other.outcome].lower()} "
      f"({percent(other.deepfake_probability)})."
    )
  if FACES in answer.judged:
    if kind == "image":
      return "The faces in the picture were judged."
    if answer.sound:
      why = ", ".join(_UNHEARD.get(code, _words(code).lower()) for code in answer.sound.reasons)
      return f"Only the faces were judged, not the sound: {why}."
    if any(name in _HEARING and b.probability is not None for name, b in answer.branches.items()):
      return "The faces were judged, together with what is heard while they are seen."
    return "Only the faces were judged; this model does not judge sound."
  if SOUND in answer.judged:
    if kind == "audio":
      return "The sound was judged."
    if answer.faces is None:
      return "Only the sound was judged; this model does not look at faces."
    seen = "none of the faces could be judged" if answer.people else "no face was found"
    return f"Only the sound was judged: {seen}."
  return ""


def _score(probability: float, thresholds: Thresholds) -> str:
  return f"{percent(probability)}; the threshold is {percent(thresholds.manipulated)}"


def _sound_line(answer: Verdict) -> str:
  sound = answer.sound
  parts = [OUTCOME_WORDS[sound.outcome].lower(), _score(sound.deepfake_probability, sound.thresholds)]
  marked = sound.marked
  return ", ".join(parts) + (f"; marked: {_places(marked)}" if marked else "")


# On a narrow screen, the labels of thresholds that are closer than this would lie on each other.
_ROOM_FOR_LABELS = 0.15


def _scale(answer: Verdict) -> Html:
  p, low, high = answer.deepfake_probability, answer.thresholds.inconclusive, answer.thresholds.manipulated
  zones = (
    (verdicts.LIKELY_AUTHENTIC, 0.0, low),
    (verdicts.INCONCLUSIVE, low, high),
    (verdicts.LIKELY_MANIPULATED, high, 1.0),
  )
  labels = [tag("span", percent(at), class_="at", style=f"left:{100 * at:.2f}%") for at in (low, high)]
  if high - low < _ROOM_FOR_LABELS:
    both = f"{percent(low)}, {percent(high)}"
    labels = [tag("span", both, class_="at both", style=f"left:{100 * high:.2f}%")]
  return tag(
    "div",
    *(
      tag("span", class_=f"zone {outcome}", style=f"left:{100 * start:.2f}%;width:{100 * (end - start):.2f}%")
      for outcome, start, end in zones
    ),
    tag("span", class_="needle", style=f"left:{100 * p:.2f}%"),
    *labels,
    class_="scale",
    role="img",
    aria_label=f"{percent(p)} on a scale from 0 to 100 %, thresholds at {percent(low)} and {percent(high)}",
  )


def _person(answer: Verdict, person: Person, key: str) -> Html:
  evidence = {e.time_s: e for e in answer.evidence if e.person == person.id}
  score = "not judged" if person.deepfake_probability is None else percent(person.deepfake_probability)
  inside = [
    tag(
      "h2",
      f"Person {person.id}",
      tag("span", score, class_=f"score {_zone(person.deepfake_probability, _of_faces(answer))}"),
    ),
    tag(
      "p",
      f"Judged in {person.judged} of {_sightings(person)}.",
      _unjudged(person),
      class_="fine",
    ),
  ]
  if len({s.time_s for s in person.sightings}) > 1:
    if marked := person.marked(_of_faces(answer)):
      inside.append(tag("p", f"Marked as likely manipulated: {_places(marked)}."))
    inside.append(_timeline(answer, person, evidence, key))
  if evidence:
    inside += _strip(answer, person, evidence, key)
  if person.quality:
    facts = (_quality(name, value) for name, value in person.quality.items())
    inside.append(tag("p", "The face, at the median: ", ", ".join(facts), ".", class_="fine"))
  return tag("section", *inside, class_="card person", id=key)


def _sightings(person: Person) -> str:
  return f"{len(person.sightings)} sighting{'s' * (len(person.sightings) != 1)}"


_QUALITY = {
  "size_px": "{:.0f} pixels in size",
  "sharpness": "sharpness {:.2f}",
  "yaw": "turned aside by {:.0f}°",
  "pitch": "raised by {:.0f}°",
  "roll": "leaning by {:.0f}°",
  "brightness": "brightness {:.0f} of 255",
  "clipped": "{:.0f}\N{NO-BREAK SPACE}% of it black or white",
}


def _quality(name: str, value: float) -> str:
  name = name.removeprefix("median_")
  if name not in _QUALITY:
    return f"{_words(name).lower()} {value:.4g}"
  shown = {"yaw": abs(value), "roll": abs(value), "clipped": 100 * value}.get(name, value)
  return _QUALITY[name].format(shown).replace(" -0°", " 0°")


def _unjudged(person: Person) -> str:
  unjudged = [s for s in person.sightings if s.probability is None]
  counts = collections.Counter(code for s in unjudged for code in s.reasons)
  told = ""
  if counts:
    codes = ", ".join(f"{_words(code).lower()} ({n})" for code, n in counts.most_common())
    told += f" Not judged because: {codes}."
  if person.judged and not all(s.reasons for s in unjudged):
    told += " Those between were seen as parts of the same stretch of film."
  return told


def _of_faces(answer: Verdict) -> Thresholds:
  return (answer.faces or answer).thresholds


@dataclasses.dataclass(frozen=True)
class _Point:
  """A probability at a time, and the id of the picture that it leads to."""

  time_s: float
  probability: float
  text: str
  picture: str | None = None


@dataclasses.dataclass(frozen=True)
class _Axis:
  """The time of a file, so that all its charts can be compared."""

  start_s: float
  end_s: float

  @classmethod
  def of(cls, answer: Verdict) -> "_Axis":
    times = [s.time_s for person in answer.people for s in person.sightings]
    times += [
      t for window in (answer.sound.windows if answer.sound else ()) for t in (window.start_s, window.end_s)
    ]
    return cls(min(times), max(times))

  def across(self, time_s: float) -> float:
    """In percent of the chart's width."""
    return 100 * (time_s - self.start_s) / (self.end_s - self.start_s)


def _timeline(answer: Verdict, person: Person, evidence: dict[float, Evidence], key: str) -> Html:
  axis = _Axis.of(answer)
  points = {
    s.time_s: _Point(
      s.time_s,
      s.probability,
      f"{clock(s.time_s)}: {percent(s.probability)}",
      f"{key}-{i}" if s.time_s in evidence else None,
    )
    for i, s in enumerate(person.sightings)
    if s.probability is not None
  }
  runs = [[points[s.time_s] for s in run] for run in _judged_runs(person.sightings)]
  # What was seen between the frames that a window holds misses nothing.
  missed = [s for s in person.sightings if s.probability is None and s.reasons]
  misses = []
  for s in missed:
    text = f"{clock(s.time_s)}: not judged, {', '.join(_words(code).lower() for code in s.reasons)}"
    misses.append(tag("span", class_="miss", style=f"left:{axis.across(s.time_s):.2f}%", title=text))
  marked = person.marked(_of_faces(answer))
  keys = ["\N{WHITE CIRCLE} judged"] + [f"{TIMES} seen, not judged"] * bool(missed)
  keys += ["shaded: marked"] * bool(marked)
  if evidence:
    keys.append(tag("span", "Point at a circle to see the face; arrow keys move along.", class_="hint"))
  whose = f"person {person.id}"
  return _chart(whose, runs, misses, keys, axis=axis, thresholds=_of_faces(answer), marked=marked)


def _chart(
  whose: str,
  runs: Sequence[Sequence[_Point]],
  marks: Sequence[Html],
  keys: Sequence[str],
  *,
  axis: _Axis,
  thresholds: Thresholds,
  marked: Sequence[tuple[float, float]] = (),
) -> Html:
  """Probability over time.

  Args:
    whose: probability, within a sentence.
    runs: what a line joins.
    marks: what lies beside the points.
    keys: what the points and marks mean.
    axis: of time.
    thresholds: of these probabilities.
    marked: (start, end) in seconds of stretches to shade.
  """
  low, high = thresholds.inconclusive, thresholds.manipulated
  lines = [
    _zone_rect(0, 100, 0, 100 * (1 - high), verdicts.LIKELY_MANIPULATED),
    _zone_rect(0, 100, 100 * (1 - high), 100 * (high - low), verdicts.INCONCLUSIVE),
    *(_marked_rect(axis.across(start), axis.across(end)) for start, end in marked),
    *(tag("line", x1=0, x2=100, y1=y, y2=y, class_="grid") for y in (0, 50, 100)),
    tag("line", x1=0, x2=100, y1=f"{100 * (1 - high):.2f}", y2=f"{100 * (1 - high):.2f}", class_="threshold"),
  ]
  for run in runs:
    places = " ".join(f"{axis.across(p.time_s):.2f},{100 * (1 - p.probability):.2f}" for p in run)
    lines.append(tag("polyline", points=places, class_="curve"))
  points = [point for run in runs for point in run]
  label = f"{_words(whose)}: nothing judged"
  if points:
    peak = max(points, key=lambda p: p.probability)
    least = percent(min(p.probability for p in points))
    label = (
      f"Probability of manipulation over time for {whose}: between {least} and {percent(peak.probability)}, "
      f"highest at {clock(peak.time_s)}"
    )
  svg = tag("svg", *lines, viewBox="0 0 100 100", preserveAspectRatio="none", role="img", aria_label=label)
  dots = [
    tag(
      "a",
      class_=f"point {_zone(p.probability, thresholds)}",
      style=f"left:{axis.across(p.time_s):.2f}%;bottom:{100 * p.probability:.2f}%",
      aria_label=p.text,
      title=p.text,
      data_time=f"{p.time_s:.3f}",
      **({"href": f"#{p.picture}", "data_preview": p.picture} if p.picture else {}),
    )
    for p in points
  ]
  # A grid label too close to the threshold's gives way to it.
  levels = [
    tag("span", f"{y} %", class_="level", style=f"bottom:{y}%")
    for y in (0, 50, 100)
    if abs(y - 100 * high) > 9
  ]
  levels.append(tag("span", percent(high), class_="level limit", style=f"bottom:{100 * high:.2f}%"))
  ticks = [
    tag("span", _tick(t), style=f"left:{axis.across(t):.2f}%") for t in round_ticks(axis.start_s, axis.end_s)
  ]
  key_words = [tag("span", words, class_="key") for words in keys]
  key_words.insert(1, tag("span", tag("i", f"{DASH} {DASH}"), " threshold", class_="key limit"))
  dense = " dense" if len(points) > _DENSE else ""
  return tag(
    "figure",
    tag("div", svg, *levels, tag("div", *marks, *dots, class_=f"points{dense}"), class_="plot"),
    tag("div", *ticks, class_="axis", aria_hidden="true"),
    tag("figcaption", tag("span", "Probability of manipulation over time."), *key_words),
    class_="timeline",
    data_start=f"{axis.start_s:.3f}",
    data_end=f"{axis.end_s:.3f}",
  )


# More points than this are drawn smaller.
_DENSE = 64


def _marked_rect(left: float, right: float) -> Html:
  # However long the file, a mark can be seen.
  width = max(right - left, 0.4)
  return _zone_rect(left, width, 0, 100, f"{verdicts.LIKELY_MANIPULATED} marked")


def _zone_rect(x: float, width: float, y: float, height: float, outcome: str) -> Html:
  place = {"x": x, "y": y, "width": width, "height": height}
  return tag("rect", **{name: f"{value:.2f}" for name, value in place.items()}, class_=f"zone {outcome}")


# Of longer files the chart has no room for seconds.
_MOMENTS_SHOWN_S = 150.0


def _sound(answer: Verdict, key: str) -> Html:
  """What was heard; nothing where sound was not judged by itself."""
  sound = answer.sound
  if sound is None or sound.deepfake_probability is None:
    return Html("")
  thresholds, axis = sound.thresholds, _Axis.of(answer)
  score = tag("span", percent(sound.deepfake_probability), class_=f"score {sound.outcome}")
  told = f"{OUTCOME_WORDS[sound.outcome]}. {_listened(sound.windows)}"
  marked = sound.marked
  if marked:
    told += f" Marked as likely manipulated: {_places(marked)}."
  inside = [tag("h2", "Sound", score), tag("p", told)]
  if axis.end_s - axis.start_s <= _MOMENTS_SHOWN_S and sound.moments:
    bars = [_bar(window, axis, thresholds) for window in sound.windows]
    runs = [[_heard(moment) for moment in run] for run in _joined_runs(sound.moments)]
    keys = ["\N{WHITE CIRCLE} one second", "\N{EM DASH} a stretch, judged as a whole"]
  else:
    bars, runs = [], [[_heard(window) for window in run] for run in _joined_runs(sound.windows)]
    keys = ["\N{WHITE CIRCLE} a stretch, judged as a whole"]
  keys += ["shaded: marked"] * bool(marked)
  inside.append(_chart("the sound", runs, bars, keys, axis=axis, thresholds=thresholds, marked=marked))
  return tag("section", *inside, class_="card person", id=key)


def _listened(windows: Sequence[SoundWindow]) -> str:
  """How much of the sound was judged: of a long file, samples."""
  if len(windows) == 1:
    return f"One stretch of {windows[0].end_s - windows[0].start_s:.1f}\N{NO-BREAK SPACE}s was judged."
  gaps = any(later.start_s > earlier.end_s + 1e-3 for earlier, later in itertools.pairwise(windows))
  rest = " What lies between them was not listened to." if gaps else ""
  longest = max(window.end_s - window.start_s for window in windows)
  return f"{len(windows)} stretches of up to {longest:.1f}\N{NO-BREAK SPACE}s were judged.{rest}"


def _bar(window: SoundWindow, axis: _Axis, thresholds: Thresholds) -> Html:
  left, right = axis.across(window.start_s), axis.across(window.end_s)
  return tag(
    "span",
    class_=f"stretch {_zone(window.probability, thresholds)}",
    style=f"left:{left:.2f}%;width:{right - left:.2f}%;bottom:{100 * window.probability:.2f}%",
    title=f"{_place(window.start_s, window.end_s)}: {percent(window.probability)}",
  )


def _heard(stretch: SoundWindow) -> _Point:
  text = f"{_place(stretch.start_s, stretch.end_s)}: {percent(stretch.probability)}"
  return _Point((stretch.start_s + stretch.end_s) / 2, stretch.probability, text)


def _joined_runs(stretches: Sequence[SoundWindow]) -> Iterator[list[SoundWindow]]:
  """Those that touch each other: a line is not drawn over what was not listened to."""
  run: list[SoundWindow] = []
  for stretch in stretches:
    if run and stretch.start_s > run[-1].end_s + 1e-3:
      yield run
      run = []
    run.append(stretch)
  if run:
    yield run


# So many marked stretches are named one by one.
_PLACES_NAMED = 8


def _places(marked: Sequence[tuple[float, float]]) -> str:
  named = [_place(*place) for place in marked[:_PLACES_NAMED]]
  if more := len(marked) - len(named):
    named.append(f"and {more} more")
  return ", ".join(named)


def _place(start_s: float, end_s: float) -> str:
  if end_s < 60:
    return f"{start_s:.1f} to {end_s:.1f}\N{NO-BREAK SPACE}s"
  return f"{_minutes(start_s)} to {_minutes(end_s)}"


def _minutes(time_s: float) -> str:
  minutes, seconds = divmod(round(time_s, 1), 60)
  return f"{minutes:.0f}:{seconds:04.1f}"


def _strip(answer: Verdict, person: Person, evidence: dict[float, Evidence], key: str) -> Iterator[Html]:
  choices = (("over", "over the face"), ("beside", "beside it"), ("off", "off"))
  # The radio buttons are siblings before the strip: so the style sheet can obey them without a script.
  for value, _ in choices:
    yield tag(
      "input",
      type="radio",
      name=f"{key}-map",
      id=f"{key}-{value}",
      class_=f"choose {value}",
      checked=value == "over",
    )
  labels = [tag("label", words, for_=f"{key}-{value}", class_=value) for value, words in choices]
  legend = tag(
    "span",
    "less",
    tag("img", src=_legend(), alt="colour scale from no to strong model attention", class_="ramp"),
    "more",
    class_="legend",
  )
  yield tag(
    "div",
    tag("span", "Region map ", tag("em", "(model attention, not proof)"), class_="label"),
    tag("span", *labels, class_="segments"),
    legend,
    class_="controls",
  )
  figures = []
  for i, s in enumerate(person.sightings):
    if s.time_s in evidence:
      figures.append(_figure(answer, s, evidence[s.time_s], f"{key}-{i}", person.id))
  yield tag("div", *figures, class_="strip" if len(figures) > 4 else "strip few")


def _figure(answer: Verdict, sighting: Sighting, evidence: Evidence, key: str, person: int) -> Html:
  at = clock(sighting.time_s)
  height, width = evidence.crop.shape[:2]
  face = tag(
    "img", src=jpeg_uri(evidence.crop), alt=f"Face of person {person} at {at}", width=width, height=height
  )
  shade = tag("img", src=map_uri(evidence.region_map), alt=f"Region map at {at}", class_="map")
  zone = _zone(evidence.probability, _of_faces(answer))
  caption = tag(
    "figcaption",
    tag("span", "face" if answer.file.get("kind") == "image" else at),
    tag("b", percent(evidence.probability), class_=zone),
  )
  return tag("figure", tag("div", face, shade, class_="crop"), caption, id=key, class_=zone)


# What a branch looks for, in a reader's words.
_BRANCHES = {
  "spatial": "Spatial: traces of blending or of a generator",
  "spatial_densenet": "Spatial (DenseNet): traces of blending or of a generator",
  "spatial_xception": "Spatial (Xception): traces of blending or of a generator",
  "cnn3d": "Space and time: what flickers or slides from frame to frame",
  "temporal": "Temporal: how the face moves, and whether its frames agree",
  "autoencoder": "Anomaly: what is unlike the real faces of the training",
  "audio": "Audio: traces of synthesis in the voice",
  "lipsync": "Lip-sync: whether the mouth says what is heard",
  "provenance": "Provenance: what the file says of its making",
}


def stability_sentence(stability: Stability) -> str:
  """How far an outcome holds under damage, and what changes it first, in a sentence."""
  ladders, outcome = stability.ladders, OUTCOME_WORDS[stability.outcome].lower()
  kinds = f"{len(ladders)} kind{'s' * (len(ladders) != 1)} of damage"
  if stability.weakest is None:
    return f"The outcome ({outcome}) holds at all levels of {kinds}."
  broken = ladders[stability.weakest].breaks
  holds = sum(ladder.breaks is None for ladder in ladders.values())
  return (
    f"The outcome ({outcome}) holds at all levels of {holds} of {kinds}; the first step that changes it: "
    f"{ladders[stability.weakest].title}, level {broken.level} ({broken.setting}), to "
    f"{OUTCOME_WORDS[broken.outcome].lower()}."
  )


def _stability(answer: Verdict) -> Html:
  """The table of damage by level; nothing where it was not measured."""
  stability = answer.stability
  if stability is None:
    return Html("")
  count = len(next(iter(stability.ladders.values())).steps)
  rows = []
  for ladder in stability.ladders.values():
    broken = ladder.breaks
    first = f"level {broken.level}, to {OUTCOME_WORDS[broken.outcome].lower()}" if broken else "never"
    title = tag("th", ladder.title, tag("small", ladder.words), scope="row")
    cells = (_rung(step, stability.outcome) for step in ladder.steps)
    rows.append(tag("tr", title, *cells, tag("td", first)))
  names = ("Damage", *(f"Level {level}" for level in range(1, count + 1)), "First change")
  header = tag("tr", *(tag("th", name, scope="col") for name in names))
  table = tag("table", tag("thead", header), tag("tbody", *rows), class_="rungs")
  score = DASH if stability.deepfake_probability is None else percent(stability.deepfake_probability)
  what = "The sound was"
  if stability.frames:
    what = f"{stability.frames} frames were" if stability.frames > 1 else "The picture was"
  told = (
    f"{what} damaged, from slight (1) to strong (5), and judged again, beginning with the search for faces. "
    f"Without damage the score is {score} ({OUTCOME_WORDS[stability.outcome].lower()}). Figures are "
    "probabilities; a symbol marks another outcome. An outcome that slight damage changes deserves less "
    "trust, but one that holds may be wrong all the same."
  )
  return tag(
    "section",
    tag("h2", "How far the verdict holds"),
    tag("p", stability_sentence(stability)),
    _scroll(table),
    tag("p", told, class_="fine"),
    class_="card",
  )


def _scroll(table: Html) -> Html:
  """What is wider than a narrow screen, in a box that can be scrolled with keys too."""
  return tag("div", table, class_="scroll", tabindex=0, role="group", aria_label="Table; scrolls sideways")


def _rung(step: Rescored, outcome: str) -> Html:
  shown = "not judged" if step.deepfake_probability is None else percent(step.deepfake_probability)
  symbol = _symbol(step.outcome) if step.outcome != outcome else ""
  return tag(
    "td",
    tag("span", symbol, shown, class_=step.outcome, title=f"{step.setting}: {OUTCOME_WORDS[step.outcome]}"),
  )


def _branches(answer: Verdict) -> Html:
  if not answer.branches:
    return Html("")
  compared = any(branch.contribution is not None for branch in answer.branches.values())
  most = max((abs(b.contribution) for b in answer.branches.values() if b.contribution is not None), default=0)
  rows = []
  for name, branch in answer.branches.items():
    score = DASH if branch.probability is None else percent(branch.probability)
    bar = tag(
      "span", tag("span", style=f"width:{100 * branch.weight:.1f}%"), class_="bar", aria_hidden="true"
    )
    cells = [
      tag("td", score, class_="number"),
      tag("td", bar, f"{100 * branch.weight:.0f}\N{NO-BREAK SPACE}%"),
      tag("td", "Judged" if branch.status == "ok" else _words(branch.status)),
    ]
    if compared:
      cells[2:2] = _contribution_cells(branch, most)
    rows.append(tag("tr", tag("th", _BRANCHES.get(name, _words(name)), scope="row"), *cells))
  names = ["Branch of the model", "Probability", "Share of attention", "Status"]
  names[3:3] = ["Its effect", "Probability without it"] * compared
  header = tag("tr", *(tag("th", name, scope="col") for name in names))
  table = tag("table", tag("thead", header), tag("tbody", *rows))
  inside = [tag("h2", "What was looked at"), _scroll(table)]
  if compared:
    text = (
      "Its effect: by how much it moves the log odds of manipulation, found by joining the branches again "
      "without it. Effects do not add up: what two branches both know, neither moves alone."
    )
    inside.append(tag("p", text, class_="fine"))
  if answer.frame_consistency_score is not None:
    text = f"Agreement of the frames: {answer.frame_consistency_score:.2f} (1 is full agreement, 0 is none)."
    inside.append(tag("p", text, class_="fine"))
  if len(answer.judged) == 2:
    text = "Faces and sound were judged each by itself, and so a share is one of the faces or of the sound."
    inside.append(tag("p", text, class_="fine"))
  return tag("section", *inside, class_="card")


def _contribution_cells(branch: BranchVerdict, most: float) -> tuple[Html, Html]:
  """The effect of a branch, a bar to the right if it speaks for manipulation, and what is without it."""
  if branch.contribution is None:
    return tag("td", DASH, class_="number"), tag("td", DASH, class_="number")
  width = 50 * abs(branch.contribution) / most if most else 0.0
  left = 50 if branch.contribution >= 0 else 50 - width
  side = verdicts.LIKELY_MANIPULATED if branch.contribution >= 0 else verdicts.LIKELY_AUTHENTIC
  bar = tag(
    "span",
    tag("span", class_=side, style=f"left:{left:.1f}%;width:{width:.1f}%"),
    class_="bar effect",
    aria_hidden="true",
  )
  effect = tag("td", bar, _signed(branch.contribution))
  return effect, tag("td", percent(branch.probability_without), class_="number")


def _signed(log_odds: float) -> str:
  return f"{log_odds:+.2f}".replace("-", "\N{MINUS SIGN}")


def _contributions(answer: Verdict) -> str:
  """What is left without each branch, the strongest first; "" where there is nothing to compare."""
  compared = [(name, b) for name, b in answer.branches.items() if b.contribution is not None]
  compared.sort(key=lambda row: -abs(row[1].contribution))
  return ", ".join(
    f"{name} {_signed(b.contribution)} (without it {percent(b.probability_without)})" for name, b in compared
  )


# What most readers ask about a file; the rest is a click away.
# fmt: off
_FIRST_FACTS = frozenset((
  "Name", "Size", "SHA-256", "Kind", "Container", "Codec", "Audio codec", "Width", "Height", "Duration",
  "Frames", "Frames per second", "Bit rate", "Encoder", "Writer", "Creation time", "Make", "Model",
  "Software",
))
# fmt: on


def _facts(answer: Verdict) -> Html:
  model = [
    *_flat(answer.model),
    *((f"Time: {_words(label).lower()}", value) for label, value in _flat(answer.timings)),
  ]
  rows = _flat(answer.file)
  stated = [(label, value) for label, value in rows if value != NOT_KNOWN]
  more = [row for row in stated if row[0] not in _FIRST_FACTS]
  silent = [label.lower() for label, value in rows if value == NOT_KNOWN]
  if silent:
    more.append(("Not stated", ", ".join(silent)))
  return tag(
    "section",
    tag(
      "div",
      tag("h2", "The file"),
      _definitions([row for row in stated if row[0] in _FIRST_FACTS]),
      tag("details", tag("summary", "More that it says of itself"), _definitions(more)) if more else "",
    ),
    tag("div", tag("h2", "The model"), _definitions(model)),
    class_="card pair",
  )


def _definitions(rows: Sequence[tuple[str, str]]) -> Html:
  return tag(
    "dl",
    *(
      tag(
        "div", tag("dt", label), tag("dd", tag("bdi", value), class_="hash" if label == "SHA-256" else None)
      )
      for label, value in rows
    ),
  )


def _limits(answers: Sequence[Answer]) -> Html:
  judged = {part for answer in answers if isinstance(answer, Verdict) for part in answer.judged}
  texts = [*LIMITS, *(text for part in (FACES, SOUND) if part in judged for text in LIMITS_OF[part])]
  items = (tag("li", text) for text in texts)
  return tag("section", tag("h2", "What this can and cannot tell"), tag("ul", *items), class_="card limits")


def _embedded_json(answers: Answer | Sequence[Answer]) -> Html:
  text = json.dumps(to_json(answers), indent=2, allow_nan=False)
  # Inside a script element nothing but "<" can end it; the other two keep strict XML readers content.
  for character in "<>&":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return tag(
    "details",
    tag("summary", "The same facts as JSON"),
    tag("pre", id="json-view", tabindex=0),
    tag("script", Html(text), type="application/json", id="verdict-json"),
    class_="card json",
  )


def _zone(probability: float | None, thresholds: Thresholds) -> str:
  return verdicts.NOT_APPLICABLE if probability is None else thresholds.outcome(probability)


def _symbol(outcome: str) -> Html:
  """A shape per outcome, for those who cannot tell the colours apart."""
  shapes = {
    verdicts.LIKELY_AUTHENTIC: "M5 12.5l4.5 4.5L19 7.5",
    verdicts.INCONCLUSIVE: "M5 9c2.3-3 4.7-3 7 0s4.7 3 7 0M5 16c2.3-3 4.7-3 7 0s4.7 3 7 0",
    verdicts.LIKELY_MANIPULATED: "M12 3.5L22 20.5H2zM12 10v5M12 17.6v.3",
    verdicts.NOT_APPLICABLE: "M4 12h16",
    "unread": "M6 6l12 12M18 6L6 18",
  }
  return tag("svg", tag("path", d=shapes[outcome]), viewBox="0 0 24 24", class_="symbol", aria_hidden="true")


def _judged_runs(sightings: Sequence[Sighting]) -> Iterator[list[Sighting]]:
  """The stretches between unjudged sightings: a line is not drawn over what was not looked at."""
  run: list[Sighting] = []
  for s in sightings:
    if s.probability is not None:
      run.append(s)
    elif run and s.reasons:
      yield run
      run = []
  if run:
    yield run


def round_ticks(start: float, end: float, *, least: int = 4) -> list[float]:
  """Round numbers between start and end, `least` to two and a half times as many of them."""
  span = end - start
  power = 10.0 ** np.floor(np.log10(span / least))
  step = power * max(m for m in (1, 2, 5) if span / (m * power) >= least or m == 1)
  first = np.ceil(start / step - 1e-9)
  # No negative zero.
  return [float(step * n) + 0.0 for n in np.arange(first, np.floor(end / step + 1e-9) + 1)]


def _tick(time_s: float) -> str:
  if time_s < 60:
    return f"{time_s:.10g} s" if time_s >= 1 or time_s == 0 else f"{time_s:.2g} s"
  return f"{time_s // 60:.0f}:{time_s % 60:02.0f}"


_UNITS = {"_s": "s", "_hz": "Hz", "_px": "px", "_degrees": "°", "_db": "dB"}


def _flat(facts: dict, prefix: str = "") -> list[tuple[str, str]]:
  """Nested facts as rows of (label, value); the unit at the end of a name moves to the value."""
  rows = []
  for name, value in facts.items():
    unit = next((u for suffix, u in _UNITS.items() if name.endswith(suffix)), "")
    stem = name[: name.rindex("_")] if unit else name
    label = f"{prefix} {_words(stem).lower()}" if prefix else _words(stem)
    if isinstance(value, dict):
      # A dict called media or container adds nothing to the names inside it.
      rows += _flat(value, "" if name in ("media", "container", "tags") else label)
    elif isinstance(value, list | tuple) and value and all(isinstance(v, dict) for v in value):
      for i, inner in enumerate(value, start=1):
        rows += _flat(inner, f"{label.removesuffix('s')} {i}")
    else:
      rows.append((label, _fact(value, unit, name)))
  return rows


def _fact(value: object, unit: str, name: str) -> str:
  if value is None or value == "" or value == [] or value == ():
    return NOT_KNOWN
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, list | tuple):
    return ", ".join(_fact(v, unit, name) for v in value)
  if not isinstance(value, int | float | np.number):
    return str(value)
  if unit == "s":
    return "less than 0.01 s" if 0 < value < 0.005 else f"{value:.2f} s"
  if name.endswith("bit_rate"):
    return f"{value / 1000:,.0f} kbit/s"
  if name in ("width", "height"):
    return f"{value} px"
  number = f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"
  if unit == "°":
    return f"{number}°"
  return f"{number} {'bytes' if name == 'bytes' else unit}".rstrip()


_NAMES = {
  "sha256": "SHA-256",
  "bytes": "size",
  "fps": "frames per second",
  "frame_count": "frames",
  "keyframe_count": "keyframes",
  "longest_gop": "frames from keyframe to keyframe, at most",
  "usual_gop": "frames from keyframe to keyframe, usually",
  "earlier_gop": "the same in an earlier compression",
  "stream_count": "streams",
}


def _words(code: str) -> str:
  text = _NAMES.get(code, str(code).replace("_", " ").strip())
  return text[:1].upper() + text[1:]


def _about(file: dict) -> str:
  media = file.get("media")
  media = media if isinstance(media, dict) else {}
  parts = [str(file["kind"])] if file.get("kind") else []
  if media.get("duration_s"):
    parts.append(clock(media["duration_s"]))
  if media.get("width") and media.get("height"):
    parts.append(f"{media['width']} {TIMES} {media['height']}")
  return ", ".join(printable(part) for part in parts)


def _name(answer: Answer) -> str:
  return answer.name if isinstance(answer, Unread) else str(answer.file.get("name") or "pictures")


def _line(label: str, text: str, width: int) -> str:
  lead = f"  {label:<19} "
  return textwrap.fill(printable(text), width, initial_indent=lead, subsequent_indent=" " * len(lead))


def _legend() -> str:
  return map_uri(np.linspace(0, 1, 64, dtype=np.float32)[None])


@functools.cache
def _asset(name: str) -> str:
  return (Path(__file__).parent / name).read_text(encoding="utf-8")
