"""What the detector says of one file; the schema of the JSON answer stands here and nowhere else."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np

from deepscan_jax import metrics

SCHEMA_VERSION = "1.2"

LIKELY_AUTHENTIC = "likely_authentic"
INCONCLUSIVE = "inconclusive"
LIKELY_MANIPULATED = "likely_manipulated"
NOT_APPLICABLE = "not_applicable"
OUTCOMES = (LIKELY_AUTHENTIC, INCONCLUSIVE, LIKELY_MANIPULATED, NOT_APPLICABLE)
# What is judged apart.
FACES, SOUND = "faces", "sound"


@dataclasses.dataclass(frozen=True)
class Reason:
  """Why an outcome is what it is.

  Attributes:
    code: stable, for machines; deepscan_jax/reasons.py lists all there are.
    message: one sentence for people.
    remedy: what to do about it, in a sentence; "" where there is nothing to do.
    facts: the numbers in the message, such as found_px and needed_px, by name with their unit.
  """

  code: str
  message: str
  remedy: str = ""
  facts: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)

  @property
  def text(self) -> str:
    """The message and the remedy."""
    return f"{self.message} {self.remedy}".rstrip()


@dataclasses.dataclass(frozen=True)
class Sighting:
  """One face in one frame.

  Attributes:
    time_s: of the frame, from the file's own timestamps.
    box: x_min, y_min, x_max, y_max in pixels of the frame as shown.
    probability: of this face alone being fake, calibrated; None where the face was not judged.
    reasons: codes of what kept it from being judged (see faces/quality.py); empty where it was.
  """

  time_s: float
  box: tuple[float, float, float, float]
  probability: float | None
  reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Person:
  """One person followed through the file; `sightings` are in order of time."""

  id: int
  deepfake_probability: float | None
  sightings: tuple[Sighting, ...]
  quality: dict

  @property
  def judged(self) -> int:
    """How many sightings the score stands on."""
    return sum(s.probability is not None for s in self.sightings)

  def marked(self, thresholds: "Thresholds") -> list[tuple[float, float]]:
    """(start, end) in seconds of where this face reaches the threshold of manipulation.

    A judged sighting stands for the time half-way to its neighbours, but no farther than three quarters of
    the usual step between sightings: what was not looked at is not marked.
    """
    # What was seen between the frames of a window, and not refused, is no neighbour.
    told = [s for s in self.sightings if s.probability is not None or s.reasons]
    steps = [later.time_s - earlier.time_s for earlier, later in itertools.pairwise(told)]
    reach = 0.75 * float(np.median(steps)) if steps else 0.0
    before = [0.0, *(min(step / 2, reach) for step in steps)]
    behind = [*before[1:], 0.0]
    return marked_times(
      (
        (s.time_s - back, s.time_s + on, s.probability)
        for s, back, on in zip(told, before, behind, strict=True)
        if s.probability is not None
      ),
      threshold=thresholds.manipulated,
    )


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """Calibrated probabilities at which outcomes change, and the false-alarm rate that they were set to.

  Below `inconclusive` the outcome is likely_authentic, from `manipulated` on it is likely_manipulated. The
  rate is that of single authentic pictures, or stretches of sound, of the validation split; that of whole
  files was not measured.
  """

  inconclusive: float
  manipulated: float
  false_positive_rate: float

  def outcome(self, probability: float) -> str:
    """likely_authentic, inconclusive or likely_manipulated."""
    if probability >= self.manipulated:
      return LIKELY_MANIPULATED
    return INCONCLUSIVE if probability >= self.inconclusive else LIKELY_AUTHENTIC


@dataclasses.dataclass(frozen=True)
class OutcomeRates:
  """How often a model gave each outcome to validation examples: what its outcomes are worth.

  Attributes:
    real, fake: shares of authentic and of manipulated examples that were called likely_authentic,
      inconclusive and likely_manipulated, in this order; each sums to 1.
    real_groups, fake_groups: how many independent groups stand behind them.
  """

  real: tuple[float, float, float]
  fake: tuple[float, float, float]
  real_groups: int
  fake_groups: int

  @classmethod
  def from_dict(cls, facts: Mapping) -> "OutcomeRates":
    """From plain values; KeyError, TypeError or ValueError where they are something else."""
    shares = {name: tuple(map(float, facts[name])) for name in ("real", "fake")}
    if any(len(values) != 3 for values in shares.values()):
      raise ValueError(f"There are three outcomes, got rates {shares}.")
    return cls(**shares, real_groups=int(facts["real_groups"]), fake_groups=int(facts["fake_groups"]))

  def share_of_fakes(self, outcome: str, *, prevalence: float) -> tuple[float, float, float] | None:
    """The share of fakes among all that gets this outcome, where `prevalence` of all are fakes (Bayes).

    Returns:
      value, and the least and the most that the 95 % intervals of both rates (Wilson 1927) allow; None where
      nothing was given this outcome.
    """
    place = OUTCOMES.index(outcome)

    def worth(real: float, fake: float) -> float:
      found, alarms = prevalence * fake, (1 - prevalence) * real
      return found / (found + alarms)

    real, fake = self.real[place], self.fake[place]
    if not real + fake:
      return None
    of_real = metrics.wilson_interval(min(max(real, 0.0), 1.0), self.real_groups)
    of_fake = metrics.wilson_interval(min(max(fake, 0.0), 1.0), self.fake_groups)
    return worth(real, fake), worth(of_real[1], of_fake[0]), worth(of_real[0], of_fake[1])


@dataclasses.dataclass(frozen=True)
class Faces:
  """What is said of all the faces of a file together; who they are stands in Verdict.people.

  Attributes:
    outcome: one of OUTCOMES.
    deepfake_probability: of the person who decides for the faces, calibrated; None where none was judged.
    reasons: codes of what kept them from being judged; empty where they were.
    thresholds: of probabilities of faces.
  """

  outcome: str
  deepfake_probability: float | None
  reasons: tuple[str, ...]
  thresholds: Thresholds


@dataclasses.dataclass(frozen=True)
class SoundWindow:
  """A stretch of the sound and what the model says of it.

  Attributes:
    start_s, end_s: in the file.
    probability: of this stretch being forged, calibrated, 0..1.
  """

  start_s: float
  end_s: float
  probability: float


@dataclasses.dataclass(frozen=True)
class Sound:
  """What was heard in a file.

  Attributes:
    outcome: one of OUTCOMES.
    deepfake_probability: of the sound as a whole, calibrated; None where it was not judged.
    windows: what was judged, in order of time.
    moments: shorter, overlapping stretches of them, where the model tells them apart, in order of time.
    reasons: codes of what kept it from being judged; empty where it was.
    thresholds: of probabilities of sound.
  """

  outcome: str
  deepfake_probability: float | None
  reasons: tuple[str, ...]
  thresholds: Thresholds
  windows: tuple[SoundWindow, ...] = ()
  moments: tuple[SoundWindow, ...] = ()

  @property
  def marked(self) -> list[tuple[float, float]]:
    """(start, end) in seconds of where it reaches the threshold of manipulation, as finely as is known."""
    stretches = ((w.start_s, w.end_s, w.probability) for w in self.moments or self.windows)
    return marked_times(stretches, threshold=self.thresholds.manipulated)


@dataclasses.dataclass(frozen=True)
class BranchVerdict:
  """One branch's opinion, and what it did to the verdict.

  Attributes:
    probability: its own, calibrated as that of the whole is.
    weight: its share of the fusion's attention, 0 to 1.
    status: "ok", or "absent" where it had nothing to look at.
    contribution: calibrated log odds of what was judged, less what they are when the fusion is run again
      without this branch: above 0 it speaks for manipulation. Exact, and not a sum: what two branches both
      know, neither contributes. None where nothing else was present.
    probability_without: the calibrated probability without it; None likewise.
  """

  probability: float | None
  weight: float
  status: str = "ok"
  contribution: float | None = None
  probability_without: float | None = None


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What a report shows of one judged face; not part of the JSON.

  Attributes:
    person: id of the person.
    time_s: of the frame.
    crop: [224, 224, 3] uint8, what the model saw.
    region_map: [height, width] float32 in 0..1, where the model sees a blended region.
    probability: of this face alone.
    place: float64 [2, 3], the matrix that takes pixels of the crop to pixels of the frame as shown, both
      counted from the upper left corner of the first; None where it is not known.
  """

  person: int
  time_s: float
  crop: np.ndarray
  region_map: np.ndarray
  probability: float
  place: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Rescored:
  """What is said of a file after one step of damage.

  Attributes:
    level: 1 (slight) to 5 (strong).
    setting: what the level is, in words.
    outcome: one of OUTCOMES.
    deepfake_probability: None where nothing could be judged any more.
  """

  level: int
  setting: str
  outcome: str
  deepfake_probability: float | None


@dataclasses.dataclass(frozen=True)
class Ladder:
  """How far a verdict holds under one kind of damage.

  Attributes:
    title, words: what the damage is, for people.
    steps: in order of level, from 1 on.
    outcome: without damage.
  """

  title: str
  words: str
  steps: tuple[Rescored, ...]
  outcome: str

  @property
  def breaks(self) -> Rescored | None:
    """The first step with another outcome; None where all have the same."""
    return next((step for step in self.steps if step.outcome != self.outcome), None)

  @property
  def holds_to(self) -> int:
    """The highest level up to which every step has the outcome; 0: none has."""
    return self.breaks.level - 1 if self.breaks else self.steps[-1].level


@dataclasses.dataclass(frozen=True)
class Stability:
  """How far a verdict holds when the file is damaged before it is judged again.

  Attributes:
    outcome, deepfake_probability: without damage, of the same frames.
    frames: how many frames were damaged and judged; 0 of a sound file.
    ladders: by name of the damage.
  """

  outcome: str
  deepfake_probability: float | None
  frames: int
  ladders: dict[str, Ladder]

  @property
  def weakest(self) -> str | None:
    """The damage that changes the outcome at the lowest level, the first of several; None where none does."""
    broken = {name: ladder.holds_to for name, ladder in self.ladders.items() if ladder.breaks}
    return min(broken, key=broken.get) if broken else None

  def to_dict(self) -> dict:
    """Plain values."""
    return {
      "outcome": self.outcome,
      "deepfake_probability": self.deepfake_probability,
      "frames": self.frames,
      "weakest": self.weakest,
      "perturbations": {
        name: {
          "holds_to": ladder.holds_to,
          "breaks_at": ladder.breaks.level if ladder.breaks else None,
          "becomes": ladder.breaks.outcome if ladder.breaks else None,
          "scores": [dataclasses.asdict(step) for step in ladder.steps],
        }
        for name, ladder in self.ladders.items()
      },
    }


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The answer for one file.

  Attributes:
    outcome: one of OUTCOMES; where faces and sound are judged apart, that of the faces, unless the sound
      alone is likely_manipulated.
    deepfake_probability: calibrated, 0..1; None where the outcome is not_applicable (never 0.5 in its place).
    decided_by: FACES or SOUND: whose outcome and probability these are; None where nothing was judged.
    frame_consistency_score: 1 - 2 * (mean absolute deviation of the frames' probabilities from their median),
      of the person that decides, 0..1; None with fewer than two judged frames.
    reasons: why; empty for a plain verdict.
    branches: by name.
    people: everybody who was followed, the most suspicious first.
    faces: of all people together; None where the model does not judge faces, or the file is a sound file.
    sound: None where the model does not judge sound by itself, or the file is a picture.
    thresholds: of what decided; those of faces and of sound stand with them.
    model: name, version, sha256 of the weights.
    file: name, bytes, sha256, kind, media (facts of the container).
    timings: seconds by stage; the only part that differs between two runs on the same file, on one machine.
    run: what it takes to do the same again (deepscan_jax/reproduction.py): path of the file and frames, as
      they were given; model_path, None for the one of the package; device, matmul_precision and versions of
      packages. Nothing is drawn at random.
    stability: how far the outcome holds under damage; None where that was not asked for, or nothing could be
      judged.
    rates: of outcomes on validation data, of what decided; None where the model does not say.
    prevalence: share of fakes among the files that this one came with, above 0 and below 1, for
      `at_prevalence`; None where it was not said.
  """

  outcome: str
  deepfake_probability: float | None
  frame_consistency_score: float | None
  reasons: tuple[Reason, ...]
  branches: dict[str, BranchVerdict]
  people: tuple[Person, ...]
  thresholds: Thresholds
  model: dict
  file: dict
  timings: dict[str, float]
  warnings: tuple[str, ...] = ()
  evidence: tuple[Evidence, ...] = ()
  sound: Sound | None = None
  decided_by: str | None = FACES
  faces: Faces | None = None
  run: dict = dataclasses.field(default_factory=dict)
  stability: Stability | None = None
  rates: OutcomeRates | None = None
  prevalence: float | None = None

  def __post_init__(self):
    if self.prevalence is not None and not 0 < self.prevalence < 1:
      raise ValueError(f"A prevalence must be above 0 and below 1, got {self.prevalence:g}.")
    if self.decided_by == FACES and self.deepfake_probability is not None:
      object.__setattr__(
        self, "faces", Faces(self.outcome, self.deepfake_probability, (), thresholds=self.thresholds)
      )

  @property
  def judged(self) -> tuple[str, ...]:
    """What was judged: FACES, SOUND, both, or nothing; what decided comes first."""
    parts = {FACES: self.faces, SOUND: self.sound}
    found = [name for name, part in parts.items() if part and part.deepfake_probability is not None]
    return tuple(sorted(found, key=lambda name: name != self.decided_by))

  @property
  def is_deepfake(self) -> bool | None:
    """True from the shipped threshold on; None where nothing could be judged."""
    if self.deepfake_probability is None:
      return None
    return self.outcome == LIKELY_MANIPULATED

  @property
  def confidence(self) -> float | None:
    """The calibrated probability of what `is_deepfake` says: p where it is True, 1 - p where it is False.

    None where nothing could be judged. An inconclusive file may have p above one half; its confidence is
    then below.
    """
    if self.deepfake_probability is None:
      return None
    return self.deepfake_probability if self.is_deepfake else 1.0 - self.deepfake_probability

  @property
  def recommendation(self) -> str:
    """What a careful reader would do next, in one or two sentences."""
    parts = {FACES: self.faces, SOUND: self.sound}
    # Nobody need look where nothing is marked, unless all is to be called authentic.
    ours = [p for p in parts if p in self.judged and parts[p].outcome in (self.outcome, *_SUSPICIOUS)]
    signs, places = ([words[part] for part in ours] for words in (_SIGNS, _PLACES))
    return RECOMMENDATIONS[self.outcome].format(signs=" or ".join(signs), places=" and ".join(places))

  @property
  def at_prevalence(self) -> dict | None:
    """What the verdict is worth where fakes are as frequent as `prevalence`; None where that was not said.

    Returns:
      prevalence; probability: of this file, the calibrated one (for one half of fakes) moved to that
      frequency by Bayes' rule; share_of_fakes: among files of its outcome, by the outcomes of validation
      examples, with share_of_fakes_interval; false_alarms_per_10000 and fakes_found_per_10000: likely
      manipulated ones among 10,000 files; all None where they are not known.
    """
    if self.prevalence is None:
      return None
    p, share = self.deepfake_probability, self.prevalence
    known = p is not None and self.rates is not None
    worth = self.rates.share_of_fakes(self.outcome, prevalence=share) if known else None
    alarms, found = (self.rates.real[2], self.rates.fake[2]) if known else (None, None)
    return {
      "prevalence": share,
      "probability": None if p is None else p * share / (p * share + (1 - p) * (1 - share)),
      "share_of_fakes": worth[0] if worth else None,
      "share_of_fakes_interval": list(worth[1:]) if worth else None,
      "false_alarms_per_10000": 10_000 * (1 - share) * alarms if known else None,
      "fakes_found_per_10000": 10_000 * share * found if known else None,
    }

  @property
  def timeline(self) -> list[dict]:
    """Per sampled time the highest probability among the people seen: [{"time_s", "probability"}]."""
    at: dict[float, float | None] = {}
    for person in self.people:
      for s in person.sightings:
        known = [p for p in (at.get(s.time_s), s.probability) if p is not None]
        at[s.time_s] = max(known) if known else None
    return [{"time_s": t, "probability": p} for t, p in sorted(at.items())]

  def to_dict(self) -> dict:
    """The JSON answer: plain dicts, lists, numbers and strings; floats rounded to 6 digits, never NaN."""
    of_faces = (self.faces or self).thresholds
    answer = {
      "schema_version": SCHEMA_VERSION,
      "deepfake_probability": self.deepfake_probability,
      "is_deepfake": self.is_deepfake,
      "confidence": self.confidence,
      "frame_consistency_score": self.frame_consistency_score,
      "recommendation": self.recommendation,
      "outcome": self.outcome,
      "decided_by": self.decided_by,
      "reasons": [dataclasses.asdict(r) for r in self.reasons],
      "thresholds": dataclasses.asdict(self.thresholds),
      "at_prevalence": self.at_prevalence,
      "branches": {name: dataclasses.asdict(b) for name, b in self.branches.items()},
      "people": [
        {
          "id": person.id,
          "deepfake_probability": person.deepfake_probability,
          "frames_seen": len(person.sightings),
          "frames_judged": person.judged,
          "quality": person.quality,
          "marked": _places(person.marked(of_faces)),
          "boxes": [
            {
              "time_s": s.time_s,
              "box": list(s.box),
              "probability": s.probability,
              "reasons": list(s.reasons),
            }
            for s in person.sightings
          ],
        }
        for person in self.people
      ],
      "faces": None if self.faces is None else dataclasses.asdict(self.faces),
      "sound": None
      if self.sound is None
      else {**dataclasses.asdict(self.sound), "marked": _places(self.sound.marked)},
      "timeline": self.timeline,
      "stability": None if self.stability is None else self.stability.to_dict(),
      "model": self.model,
      "file": self.file,
      "timings": self.timings,
      "run": self.run,
      "warnings": list(self.warnings),
    }
    return _plain(answer)


_SUSPICIOUS = (INCONCLUSIVE, LIKELY_MANIPULATED)
# {signs} and {places} name what was judged.
RECOMMENDATIONS = {
  LIKELY_AUTHENTIC: (
    "No sign of {signs} was found. That is not proof of authenticity: methods that this model was not "
    "trained for pass unseen. Check the source before you rely on the file."
  ),
  INCONCLUSIVE: (
    "The evidence is too weak to call it either way. Look for an earlier or better copy of the file, and "
    "have a person {places}."
  ),
  LIKELY_MANIPULATED: (
    "Treat the file as possibly manipulated: {places}, find the original, and do not rest a decision on this "
    "score alone."
  ),
  NOT_APPLICABLE: "This file holds nothing that the model can judge; the reasons say what is missing.",
}
_SIGNS = {FACES: "a manipulated face", SOUND: "a synthetic voice"}
_PLACES = {
  FACES: "look at the frames and regions that score highest",
  SOUND: "listen to the stretches that score highest",
}


def marked_times(
  stretches: Iterable[tuple[float, float, float]], *, threshold: float
) -> list[tuple[float, float]]:
  """(start, end) of where stretches reach a threshold; those that touch are one.

  Args:
    stretches: start, end in seconds and probability of each, in order of time.
    threshold: a probability.
  """
  marked: list[tuple[float, float]] = []
  for start, end, probability in stretches:
    if probability < threshold:
      continue
    if marked and start <= marked[-1][1] + 1e-3:
      marked[-1] = marked[-1][0], max(marked[-1][1], end)
    else:
      marked.append((start, end))
  return marked


def frame_consistency(probabilities: np.ndarray) -> float | None:
  """How far the frames agree: 1 - 2 * mean(|p - median(p)|).

  Args:
    probabilities: [frame] float in 0..1.

  Returns:
    1 where all frames agree, 0 where half say 0 and half say 1; None for fewer than two frames.
  """
  if len(probabilities) < 2:
    return None
  p = np.asarray(probabilities, np.float64)
  return float(1 - 2 * np.abs(p - np.median(p)).mean())


def _places(marked: list[tuple[float, float]]) -> list[dict]:
  return [{"start_s": start, "end_s": end} for start, end in marked]


def _plain(value):
  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, bool | np.bool_):
    return bool(value)
  if isinstance(value, int | np.integer):
    return int(value)
  if isinstance(value, float | np.floating):
    return round(float(value), 6) if math.isfinite(value) else None
  return value
