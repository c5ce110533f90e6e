"""The detector as people use it: a model and a file in, a Verdict out."""

import dataclasses
import functools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from deepscan_jax import checkpoints, compilation_cache, examples, faces, media, provenance
from deepscan_jax.calibration import Calibration
from deepscan_jax.config import Config, ModelConfig, from_dict, to_dict
from deepscan_jax.faces.quality import MIN_SIZE_PX
from deepscan_jax.verdict import (
  INCONCLUSIVE,
  LIKELY_MANIPULATED,
  NOT_APPLICABLE,
  BranchVerdict,
  Evidence,
  Person,
  Reason,
  Sighting,
  Verdict,
  frame_consistency,
)

DEFAULT_MODEL = Path(__file__).parent / "weights" / "default"
# Batches are padded to one of these sizes, so that few programs are compiled. A CPU judges 32 crops in eights
# as fast as at once, in a quarter of the memory.
BATCH_SIZES = (1, 8, 32)
LARGEST_ON_CPU = 8
# Who decides for the file: somebody judged in at least so many frames, or, if nobody was, in as many as
# anybody; and in this share of the frames of the person judged most. A cut makes a new track of the same
# person, and the highest of many short tracks is high by chance.
_DECIDING_FRAMES = 4
_DECIDING_SHARE = 0.1
# A file that cannot be opened is refused within this time; a video takes longer to decode.
_EARLY_FAILURE_S = 0.3
_REASONS = {
  "face_too_small": (
    "The largest face is {size_px:.0f} px across; {min_size} px are needed. Use a larger copy."
  ),
  "face_too_blurred": "The faces are too blurred to be judged. Use a sharper copy.",
  "extreme_pose": "The faces are turned too far away from the camera to be judged.",
  "bad_exposure": "The faces are too dark or too bright to be judged.",
}


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What the network says of face crops.

  Attributes:
    logits: [crop] float64, fused.
    branch_logits: by branch name, [crop] float64.
    branch_weights: by branch name, [crop] float64, shares of the fusion's attention.
    region: [crop, rows, columns] float32 in 0..1.
  """

  logits: np.ndarray
  branch_logits: dict[str, np.ndarray]
  branch_weights: dict[str, np.ndarray]
  region: np.ndarray


class Detector:
  """A loaded model; use `load_detector`.

  Args:
    folder: of a model, see deepscan_jax.checkpoints.
    calibrated: False loads a model that has no calibration yet; it can `judge`, but not `detect`.

  Raises:
    CheckpointError: the model is missing, damaged, or was never calibrated.
  """

  def __init__(self, folder: str | Path, *, calibrated: bool = True):
    facts = checkpoints.read_model(folder)
    if calibrated and "calibration" not in facts:
      raise checkpoints.CheckpointError(
        f"The model at {folder} has no calibration; "
        f"run `deepscan calibrate --model_path={folder}` on its data first."
      )
    try:
      self.metadata = {key: facts[key] for key in ("name", "version", "sha256")}
      self.config: Config = from_dict(facts["config"])
      self.calibration = Calibration(**facts["calibration"]) if calibrated else None
    except (KeyError, TypeError, ValueError) as error:
      raise checkpoints.CheckpointError(
        f"The model at {folder} was written by another version of deepscan_jax ({error}); train it again."
      ) from error
    self._variables = compilation_cache.loaded(
      "params", lambda: checkpoints.read_params(folder), facts=self.metadata["sha256"]
    )
    self._batch_sizes = [b for b in BATCH_SIZES if jax.default_backend() != "cpu" or b <= LARGEST_ON_CPU]
    self._programs: dict[int, Future] = {}
    self._tracing = threading.Lock()

  def detect(self, path: str | Path, *, frames: int = 32, decoding: media.Decoding | None = None) -> Verdict:
    """Judges one file.

    Args:
      path: a video, an image or a sound file; it is decoded in the sandbox.
      frames: how many frames of a video are looked at, spread evenly.
      decoding: of this path into so many frames, begun before; None begins here.

    Raises:
      MediaError: the file cannot be read; the message says why.
    """
    decoding = decoding or media.Decoding(path, plan=media.SamplingPlan(frame_count=frames))
    clock = _Clock(decoding.started_s)
    clip = self._wait_for_clip(decoding, frames, clock)
    with clock("hash_s"):
      facts = provenance.file_facts(path, clip=clip)
    if media.file_state(path) != decoding.file_state:
      message = f"{Path(path).name} was changed while it was read; try again once it is complete."
      raise media.MediaError("changed_while_read", message)
    file = {
      **{k: facts[k] for k in ("name", "bytes", "sha256")},
      "kind": clip.kind,
      "media": facts["container"],
    }
    return self._judge_clip(clip, file, clock)

  def detect_images(self, images: np.ndarray) -> Verdict:
    """Judges pictures of one scene, as the frames of a clip one second apart.

    Args:
      images: [picture, height, width, 3] uint8 RGB.

    Raises:
      ValueError: another dtype or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
      raise ValueError(
        f"Images must be uint8 [picture, height, width, 3], got {images.dtype} {list(images.shape)}."
      )
    clip = media.Clip(
      kind="image",
      frames=images,
      frame_times_s=np.arange(len(images), dtype=np.float64),
      waveform=np.zeros(0, np.float32),
      sample_rate_hz=media.SAMPLE_RATE_HZ,
      facts={"width": images.shape[2], "height": images.shape[1]},
      warnings=(),
    )
    file = {"name": None, "bytes": None, "sha256": None, "kind": "image", "media": clip.facts}
    return self._judge_clip(clip, file, _Clock(time.perf_counter()))

  def judge(self, inputs: dict[str, np.ndarray]) -> Judgement:
    """Runs the network on stacked examples, in batches of fixed sizes.

    Args:
      inputs: what `examples.model_inputs` gives, stacked: crops [crop, frame, 224, 224, 3] uint8, crop_mask
        [crop, frame] bool.
    """
    total = len(inputs["crop_mask"])
    size = self._batch_size(total)
    program = self._begin_compiling(size).result()
    parts = []
    for start in range(0, total, size):
      count = min(total - start, size)
      batch = {
        key: np.concatenate(
          [value[start : start + count], np.zeros((size - count, *value.shape[1:]), value.dtype)]
        )
        for key, value in inputs.items()
      }
      answer = program(self._variables, batch)
      parts.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], answer))
    logit, branch_logits, weights, region = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    if not np.isfinite(logit).all():
      raise checkpoints.CheckpointError(
        "The model gives scores that are not numbers; train or fetch it again."
      )
    return Judgement(
      logits=logit.astype(np.float64),
      branch_logits={name: x.astype(np.float64) for name, x in branch_logits.items()},
      # Not in the order of branch_logits: a dict that comes out of jit is sorted by its keys.
      branch_weights={
        name: weights[:, i].astype(np.float64) for i, name in enumerate(self.config.model.branches)
      },
      region=region,
    )

  def _wait_for_clip(self, decoding: media.Decoding, frames: int, clock: "_Clock") -> media.Clip:
    """Meanwhile what a video will need is compiled here."""
    # What fails, fails early: nobody should wait for a compiler to hear that a file is empty.
    ended = decoding.wait(_EARLY_FAILURE_S + decoding.started_s - time.perf_counter())
    video = not ended or decoding.result().kind == "video"
    if video:
      faces.prepare(wait=False)
      self._begin_compiling(self._batch_size(frames))
    clip = decoding.result()
    clock.add("decode_s", decoding.seconds)
    if video:
      with clock("compile_s"):
        faces.prepare()
    return clip

  def _batch_size(self, count: int) -> int:
    """The smallest size that holds so many crops, or the largest there is."""
    return next((size for size in self._batch_sizes if size >= count), self._batch_sizes[-1])

  def _begin_compiling(self, size: int) -> Future:
    with self._tracing:
      if size not in self._programs:
        shapes = jax.tree.map(np.shape, self._variables)
        self._programs[size] = compilation_cache.compiling(
          f"detector_{size}",
          lambda: _lower(self.config.model, self._variables, size),
          facts=repr((to_dict(self.config.model), shapes)),
        )
      return self._programs[size]

  def _judge_clip(self, clip: media.Clip, file: dict, clock: "_Clock") -> Verdict:
    if clip.kind == "audio":
      message = "Sound is not judged by this model yet; give a video or a picture with a face."
      return self._not_applicable((Reason("audio_not_supported", message),), (), clip, file, clock)
    with clock("faces_s"):
      subjects = examples.find_subjects(clip)
      cut = [examples.model_inputs(e) for subject in subjects for e in examples.windows(subject)]
    if not cut:
      people = tuple(
        _person(i, s, np.full(len(s.boxes), np.nan), None) for i, s in enumerate(subjects, start=1)
      )
      return self._not_applicable(_why_not(subjects), people, clip, file, clock)
    with clock("compile_s"):
      self._begin_compiling(self._batch_size(len(cut))).result()
    with clock("model_s"):
      judged = self.judge(examples.stack(cut))
    return self._verdict(subjects, judged, clip, file, clock)

  def _verdict(
    self, subjects: list[examples.Subject], judged: Judgement, clip: media.Clip, file: dict, clock: "_Clock"
  ) -> Verdict:
    ends = np.cumsum([subject.usable.sum() for subject in subjects])
    rows_of = [
      np.arange(end - subject.usable.sum(), end) for subject, end in zip(subjects, ends, strict=True)
    ]
    people, evidence = [], []
    for number, (subject, rows) in enumerate(zip(subjects, rows_of, strict=True), start=1):
      by_sighting = np.full(len(subject.boxes), np.nan)
      by_sighting[subject.usable] = self.calibration.probability(judged.logits[rows])
      whole = float(self.calibration.probability(judged.logits[rows].mean())) if len(rows) else None
      people.append(_person(number, subject, by_sighting, whole))
      evidence += _evidence(number, subject, judged, rows, by_sighting)
    deciding = _deciding(rows_of, judged.logits)
    rows, person = rows_of[deciding], people[deciding]
    outcome = self.calibration.outcome(float(judged.logits[rows].mean()))
    branches = {
      name: BranchVerdict(
        probability=float(self.calibration.probability(logits[rows].mean())),
        weight=float(judged.branch_weights[name][rows].mean()),
      )
      for name, logits in judged.branch_logits.items()
    }
    return Verdict(
      outcome=outcome,
      deepfake_probability=person.deepfake_probability,
      frame_consistency_score=frame_consistency(self.calibration.probability(judged.logits[rows])),
      reasons=_why(outcome, person, people, self.calibration),
      branches=branches,
      people=tuple(sorted(people, key=_most_suspicious_first)),
      thresholds=self.calibration.thresholds,
      model=self.metadata,
      file=file,
      timings=clock.timings(),
      warnings=clip.warnings,
      evidence=tuple(evidence),
    )

  def _not_applicable(
    self,
    reasons: tuple[Reason, ...],
    people: tuple[Person, ...],
    clip: media.Clip,
    file: dict,
    clock: "_Clock",
  ) -> Verdict:
    return Verdict(
      outcome=NOT_APPLICABLE,
      deepfake_probability=None,
      frame_consistency_score=None,
      reasons=reasons,
      branches={name: BranchVerdict(None, 0.0, status="absent") for name in self.config.model.branches},
      people=people,
      thresholds=self.calibration.thresholds,
      model=self.metadata,
      file=file,
      timings=clock.timings(),
      warnings=clip.warnings,
    )


def load_detector(path: str | Path | None = None) -> Detector:
  """Returns a Detector.

  Args:
    path: folder of a model, such as WORKDIR/best of a training; None for the one that comes with the package.

  Raises:
    CheckpointError: the model is missing, damaged or not calibrated.
  """
  return Detector(DEFAULT_MODEL if path is None else path)


@functools.cache
def _default_detector() -> Detector:
  return load_detector()


def detect(path: str | Path, *, frames: int = 32) -> Verdict:
  """As `Detector.detect` with the model that comes with the package, which is loaded once."""
  return _default_detector().detect(path, frames=frames)


def _lower(config: ModelConfig, variables: dict, size: int) -> jax.stages.Lowered:
  # Only where the network has to be traced: a program that was kept runs without Flax.
  from deepscan_jax.models.detector import Detector as Network

  network = Network(config)

  def apply(variables: dict, batch: dict):
    output = network.apply(variables, batch, train=False)
    region = next(b.maps["region"] for b in output.branches.values() if "region" in b.maps)
    return (
      output.logit,
      {name: branch.logit for name, branch in output.branches.items()},
      output.weights,
      jax.nn.sigmoid(region[:, 0]),
    )

  window = (size, examples.FRAMES_PER_WINDOW)
  batch = {
    "crops": jax.ShapeDtypeStruct((*window, faces.EVAL_SIZE, faces.EVAL_SIZE, 3), np.uint8),
    "crop_mask": jax.ShapeDtypeStruct(window, np.bool_),
  }
  return jax.jit(apply).lower(variables, batch)


def _person(
  number: int, subject: examples.Subject, probabilities: np.ndarray, probability: float | None
) -> Person:
  sightings = tuple(
    Sighting(
      time_s=float(time_s),
      box=tuple(float(v) for v in box),
      probability=None if np.isnan(p) else float(p),
      reasons=reasons,
    )
    for time_s, box, p, reasons in zip(
      subject.frame_times_s, subject.boxes, probabilities, subject.reasons, strict=True
    )
  )
  columns = [f.name for f in dataclasses.fields(faces.FaceQuality)]
  quality = {f"median_{c}": float(np.median([getattr(q, c) for q in subject.quality])) for c in columns}
  return Person(id=number, deepfake_probability=probability, sightings=sightings, quality=quality)


def _evidence(
  number: int, subject: examples.Subject, judged: Judgement, rows: np.ndarray, probabilities: np.ndarray
) -> list[Evidence]:
  return [
    Evidence(
      person=number,
      time_s=float(subject.frame_times_s[sighting]),
      crop=faces.eval_crop(subject.crops[sighting]),
      region_map=judged.region[row],
      probability=float(probabilities[sighting]),
    )
    for sighting, row in zip(np.flatnonzero(subject.usable), rows, strict=True)
  ]


def _deciding(rows_of: list[np.ndarray], logits: np.ndarray) -> int:
  """The index of the person with the highest mean logit among those who are seen enough to decide for the
  file."""
  most = max(len(rows) for rows in rows_of)
  needed = max(min(_DECIDING_FRAMES, most), _DECIDING_SHARE * most)
  candidates = [i for i, rows in enumerate(rows_of) if len(rows) >= needed]
  return max(candidates, key=lambda i: logits[rows_of[i]].mean())


def _most_suspicious_first(person: Person) -> tuple[float, int]:
  return (-1.0 if person.deepfake_probability is None else person.deepfake_probability) * -1, person.id


def _why(outcome: str, person: Person, people: list[Person], calibration: Calibration) -> tuple[Reason, ...]:
  reasons = []
  thresholds = calibration.thresholds
  if outcome == LIKELY_MANIPULATED:
    seen = [s for s in person.sightings if s.probability is not None]
    over = sum(s.probability >= thresholds.manipulated for s in seen)
    top = max(seen, key=lambda s: s.probability)
    message = (
      f"Traces of a blended face in {over} of {len(seen)} judged frames of person {person.id}, strongest at "
      f"{top.time_s:.2f} s."
    )
    reasons.append(Reason("blending_traces", message))
  if outcome == INCONCLUSIVE:
    message = (
      f"The probability {person.deepfake_probability:.2f} lies between {thresholds.inconclusive:.2f}, below "
      f"which a file is called authentic, and {thresholds.manipulated:.2f}, from which on it is called "
      "manipulated."
    )
    reasons.append(Reason("between_thresholds", message))
  for other in people:
    suspicious = (other.deepfake_probability or 0.0) >= thresholds.manipulated
    if suspicious and other is not person and outcome != LIKELY_MANIPULATED:
      message = (
        f"Person {other.id} scores {other.deepfake_probability:.2f}, but was judged in {other.judged} frames "
        "only, too few to decide for the file; look at them."
      )
      reasons.append(Reason("brief_person_suspicious", message))
  if person.judged < 3 <= len(person.sightings):
    reasons.append(
      Reason(
        "few_judged_frames",
        f"Only {person.judged} of {len(person.sightings)} sightings were good enough to judge.",
      )
    )
  return tuple(reasons)


def _why_not(subjects: list[examples.Subject]) -> tuple[Reason, ...]:
  if not subjects:
    return (Reason("no_face", "No face was found; this model judges faces only."),)
  codes = sorted({code for subject in subjects for reasons in subject.reasons for code in reasons})
  size = max(q.size_px for subject in subjects for q in subject.quality)
  facts = {"size_px": size, "min_size": MIN_SIZE_PX}
  return tuple(Reason(code, _REASONS[code].format(**facts)) for code in codes)


class _Clock:
  """Seconds by stage, and in all."""

  def __init__(self, started_s: float):
    self._started_s = started_s
    self._stages: dict[str, float] = {}

  @contextmanager
  def __call__(self, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    self.add(stage, time.perf_counter() - started)

  def add(self, stage: str, seconds: float) -> None:
    self._stages[stage] = self._stages.get(stage, 0.0) + seconds

  def timings(self) -> dict[str, float]:
    return {**self._stages, "total_s": time.perf_counter() - self._started_s}
