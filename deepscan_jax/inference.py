"""The detector as people use it: a model and a file in, a Verdict out."""

import dataclasses
import functools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deepscan_jax import (
  checkpoints,
  compilation_cache,
  environment,
  examples,
  faces,
  media,
  provenance,
  reasons,
)
from deepscan_jax.calibration import Calibration
from deepscan_jax.config import Config, WindowConfig, from_dict, to_dict
from deepscan_jax.speech import LEAST_SOUND_S
from deepscan_jax.verdict import (
  FACES,
  INCONCLUSIVE,
  LIKELY_MANIPULATED,
  NOT_APPLICABLE,
  SOUND,
  BranchVerdict,
  Evidence,
  Faces,
  OutcomeRates,
  Person,
  Reason,
  Sighting,
  Sound,
  SoundWindow,
  Thresholds,
  Verdict,
  frame_consistency,
)

# Where a model's facts hold how its logits are read: of windows with faces, and of sound alone.
CALIBRATIONS = ("calibration", "sound_calibration")
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
# Windows of sound that are listened to, spread evenly over longer files.
_SOUND_WINDOWS = 16
# Sound that fills less of a window is not judged: thresholds are those of whole windows, and the shorter a
# real recording is cut below half of one, the more often it reaches "manipulated".
_LEAST_OF_WINDOW = 0.5
# How long the stretches are that the audio branch judges one by one (models.audio.AudioBranch.window_s).
MOMENT_S = 1.0
_FACE_INPUTS = ("crops", "crop_mask")
_SOUND_INPUTS = ("waveform", "waveform_mask")
# A file that cannot be opened is refused within this time; a video takes longer to decode.
_EARLY_FAILURE_S = 0.3


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What the network says of examples.

  Attributes:
    logits: [example] float64, fused.
    branch_logits: by name of each branch that had its inputs, [example] float64.
    branch_weights: likewise, shares of the fusion's attention.
    frame_logits: [example, frame] float64, of each frame alone where a branch tells, else of its example;
      empty without faces.
    region: [example, frame, rows, columns] float32 in 0..1; None where no branch draws a map.
    moments: [example, moment, 2] float64, the logit of shorter stretches of the sound and the second of their
      middle, 0 where there is none; None where no branch listens.
    without: by name of each branch, [example] float64, the fused logit of all the others; empty where the
      model has only one.
  """

  logits: np.ndarray
  branch_logits: dict[str, np.ndarray]
  branch_weights: dict[str, np.ndarray]
  frame_logits: np.ndarray
  region: np.ndarray | None
  moments: np.ndarray | None
  without: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


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
    self._folder = Path(folder)
    try:
      self.metadata = {key: facts[key] for key in ("name", "version", "sha256")}
      self.config: Config = from_dict(facts["config"])
      self.inputs = tuple(facts.get("inputs", _FACE_INPUTS))
      found = [Calibration.from_dict(facts[key]) if facts.get(key) else None for key in CALIBRATIONS]
      self.calibration, self.sound_calibration = found
    except (KeyError, TypeError, ValueError) as error:
      raise checkpoints.CheckpointError(
        f"The model at {folder} was written by another version of deepscan_jax ({error}); train it again."
      ) from error
    if calibrated and not (self.judges_faces or self.judges_sound):
      raise checkpoints.CheckpointError(
        f"The model at {folder} has no calibration; "
        f"run `deepscan calibrate --model_path={folder}` on its data first."
      )
    self._variables = compilation_cache.loaded(
      "params", lambda: checkpoints.read_params(folder), facts=self.metadata["sha256"]
    )
    self._batch_sizes = [b for b in BATCH_SIZES if jax.default_backend() != "cpu" or b <= LARGEST_ON_CPU]
    self._programs: dict[tuple, Future] = {}
    self._tracing = threading.Lock()

  @property
  def window(self) -> WindowConfig:
    """What the model reads of each example."""
    return self.config.data.window.reading(self.inputs)

  @property
  def face_inputs(self) -> tuple[str, ...]:
    """What it reads of a window with faces; sound only where windows last."""
    if not self.window.frames:
      return ()
    return tuple(key for key in self.inputs if self.window.is_sequence or key not in _SOUND_INPUTS)

  @property
  def sound_inputs(self) -> tuple[str, ...]:
    """What it reads of a window of sound alone; nothing if it cannot judge that."""
    return tuple(key for key in self.inputs if key in _SOUND_INPUTS) if self.window.samples else ()

  def detect(self, path: str | Path, *, frames: int = 32, decoding: media.Decoding | None = None) -> Verdict:
    """Judges one file.

    Args:
      path: a video, an image or a sound file; it is decoded in the sandbox.
      frames: how many frames of a video are looked at, spread evenly; by a model that looks at windows of
        several, one window for eight of them.
      decoding: of this path, begun before as `examples.sampling_plan` says for the model's window; None
        begins here.

    Raises:
      MediaError: the file cannot be read; the message says why.
    """
    decoding = decoding or media.Decoding(path, plan=examples.sampling_plan(self.window, frames=frames))
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
    verdict = self._judge_clip(clip, file, clock)
    return dataclasses.replace(verdict, run={"path": str(path), "frames": frames, **verdict.run})

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
    return self.detect_clip(clip)

  def detect_clip(self, clip: media.Clip) -> Verdict:
    """Judges what was taken out of a file already; the verdict's `file` says of which kind it is, no more."""
    file = {"name": None, "bytes": None, "sha256": None, "kind": clip.kind, "media": clip.facts}
    return self._judge_clip(clip, file, _Clock(time.perf_counter()))

  def prepare(self, *, windows: int) -> None:
    """Compiles what short clips need, so that none has to wait for it.

    Args:
      windows: up to so many windows with faces are judged at once, and one of sound alone.
    """
    programs = []
    if self.judges_faces:
      sizes = [size for size in self._batch_sizes if size <= self._batch_size(windows)]
      programs += [self._begin_compiling(size, self.face_inputs) for size in sizes]
    if self.judges_sound:
      programs.append(self._begin_compiling(self._batch_size(1), self.sound_inputs))
    if self.judges_faces:
      faces.prepare(batches=(1, faces.BATCH_SIZE))
    for program in programs:
      program.result()

  def judge(self, inputs: dict[str, np.ndarray]) -> Judgement:
    """Runs the network on stacked examples, in batches of fixed sizes.

    Args:
      inputs: what `examples.model_inputs` gives of some of `self.inputs`, stacked: each [example, ...].
        Branches that read anything else are left out, as if all of that were absent.
    """
    keys = tuple(key for key in self.inputs if key in inputs)
    answer = self._run_network({key: inputs[key] for key in keys}, keys)
    if not np.isfinite(answer["logit"]).all():
      raise checkpoints.CheckpointError(
        "The model gives scores that are not numbers; train or fetch it again."
      )
    logits = answer["logit"].astype(np.float64)
    frames = answer.get("frame_logits", np.repeat(logits[:, None], self.window.frames, axis=1))
    return Judgement(
      logits=logits,
      branch_logits={name: x.astype(np.float64) for name, x in answer["branch_logits"].items()},
      branch_weights={name: x.astype(np.float64) for name, x in answer["branch_weights"].items()},
      frame_logits=frames.astype(np.float64),
      region=answer.get("region"),
      moments=answer["moments"].astype(np.float64) if "moments" in answer else None,
      without={name: x.astype(np.float64) for name, x in answer.get("without", {}).items()},
    )

  def judge_held(self, batch: dict[str, np.ndarray]) -> Judgement:
    """As `judge`, without the branches that would look at nothing in a whole batch; the answers are the same.

    Args:
      batch: of some of `self.inputs`, and anything else, stacked: each [example, ...].
    """
    keys = tuple(key for key in self.inputs if key in batch)
    empty = [mask for mask in examples.MASKED if mask in keys and not batch[mask].any()]
    return self.judge({key: batch[key] for key in self.inputs_without(empty, keys=keys)})

  def inputs_without(self, empty: Iterable[str], *, keys: Sequence[str] | None = None) -> tuple[str, ...]:
    """Inputs but for what masks hide altogether; all, where no branch could read what is left.

    Args:
      empty: names of masks (examples.MASKED) that are False everywhere.
      keys: of `self.inputs`; None: all of them.
    """
    keys = self.inputs if keys is None else tuple(keys)
    absent = {key for mask in empty for key in (mask, *examples.MASKED[mask])}
    held = tuple(key for key in keys if key not in absent)
    from deepscan_jax.models.detector import branches_that_read

    return held if branches_that_read(self.config.model, held) else keys

  def _run_network(self, inputs: dict[str, np.ndarray], keys: tuple[str, ...]) -> dict:
    """What the network, as it reads these keys, gives for [example, ...]: a tree of numpy arrays."""
    total = len(inputs[keys[0]])
    size = self._batch_size(total)
    parts = []
    for start in range(0, total, size):
      count = min(total - start, size)
      batch = {
        key: np.concatenate(
          [
            inputs[key][start : start + count],
            np.zeros((size - count, *inputs[key].shape[1:]), inputs[key].dtype),
          ]
        )
        for key in keys
      }
      parts.append(jax.tree.map(lambda x, n=count: x[:n], self._run_batch(batch, keys)))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

  def _run_batch(self, batch: dict[str, np.ndarray], keys: tuple[str, ...]) -> dict:
    """As `_run_network`, of one batch as it is."""
    program = self._begin_compiling(len(batch[keys[0]]), keys).result()
    return jax.tree.map(np.asarray, program(self._variables, batch))

  def _wait_for_clip(self, decoding: media.Decoding, frames: int, clock: "_Clock") -> media.Clip:
    """Meanwhile what a video will need is compiled here."""
    # What fails, fails early: nobody should wait for a compiler to hear that a file is empty.
    ended = decoding.wait(_EARLY_FAILURE_S + decoding.started_s - time.perf_counter())
    video = not ended or decoding.result().kind == "video"
    if video and self.judges_faces:
      faces.prepare(wait=False)
      count = examples.windows_to_look_at(self.window, frames=frames)
      self._begin_compiling(self._batch_size(count), self.face_inputs)
    clip = decoding.result()
    clock.add("decode_s", decoding.seconds)
    if video and self.judges_faces:
      with clock("compile_s"):
        faces.prepare()
    return clip

  def _batch_size(self, count: int) -> int:
    """The smallest size that holds so many crops, or the largest there is."""
    return next((size for size in self._batch_sizes if size >= count), self._batch_sizes[-1])

  def _begin_compiling(self, size: int, keys: tuple[str, ...]) -> Future:
    with self._tracing:
      if (size, keys) not in self._programs:
        shapes = jax.tree.map(np.shape, self._variables)
        self._programs[size, keys] = compilation_cache.compiling(
          f"detector_{'sound_' if keys == self.sound_inputs else ''}{size}",
          lambda: _lower(self.config, self._variables, size, keys),
          facts=repr((to_dict(self.config.model), to_dict(self.window), keys, shapes)),
        )
      return self._programs[size, keys]

  def _judge_clip(self, clip: media.Clip, file: dict, clock: "_Clock") -> Verdict:
    people, evidence, windows, moments, parts = (), (), (), (), {}
    if self.judges_faces and clip.kind != "audio":
      people, evidence, parts[FACES] = self._judge_faces(clip, clock)
    # Windows that last hold the sound of their time already.
    heard_with_faces = self.window.is_sequence and FACES in parts and parts[FACES].probability is not None
    if self.judges_sound and clip.kind != "image" and not heard_with_faces:
      windows, moments, parts[SOUND] = self._judge_sound(clip, clock)
    judged = [part for part in parts.values() if part.probability is not None]
    if len(judged) == 2 and not faces_decide(of_faces=judged[0].outcome, of_sound=judged[1].outcome):
      judged.reverse()
    decided = judged[0] if judged else None
    branches = {name: BranchVerdict(None, 0.0, status="absent") for name in self.config.model.branches}
    for part in judged:
      branches |= part.branches
    return Verdict(
      outcome=decided.outcome if decided else NOT_APPLICABLE,
      deepfake_probability=decided.probability if decided else None,
      frame_consistency_score=next((p.consistency for p in judged if p.consistency is not None), None),
      reasons=tuple(r for p in judged or parts.values() for r in p.reasons) or _why_nothing(clip.kind, parts),
      branches=branches,
      people=tuple(sorted(people, key=_most_suspicious_first)),
      thresholds=(decided or self).thresholds,
      model=self.metadata,
      file=file,
      timings=clock.timings(),
      warnings=clip.warnings,
      evidence=tuple(evidence),
      faces=Faces(**parts[FACES].said()) if FACES in parts else None,
      sound=Sound(**parts[SOUND].said(), windows=windows, moments=moments) if SOUND in parts else None,
      decided_by=decided.name if decided else None,
      run=self._run_facts(),
      rates=decided.rates if decided else None,
    )

  def _run_facts(self) -> dict:
    """What verdicts tell of the run that made them, but for the file."""
    own = None if self._folder == DEFAULT_MODEL else str(self._folder)
    return {"model_path": own, **environment.device(), "versions": environment.versions()}

  @property
  def thresholds(self) -> Thresholds:
    """Of faces, or of sound where the model judges no faces."""
    return (self.calibration or self.sound_calibration).thresholds

  @property
  def judges_faces(self) -> bool:
    """Whether it judges faces, with what it reads beside them."""
    return bool(self.face_inputs and self.calibration)

  @property
  def judges_sound(self) -> bool:
    """Whether it judges sound by itself."""
    return bool(self.sound_inputs and self.sound_calibration)

  def _judge_faces(
    self, clip: media.Clip, clock: "_Clock"
  ) -> tuple[Sequence[Person], Sequence[Evidence], "_Part"]:
    with clock("faces_s"):
      subjects = examples.find_subjects(clip)
      windows = [examples.face_windows(subject, clip, window=self.window) for subject in subjects]
    if any(windows):
      judged = self._judge_windows([w for own in windows for w in own], self.face_inputs, clock)
      return self._of_faces(subjects, windows, judged)
    people = [_person(i, s, np.full(len(s.boxes), np.nan), None) for i, s in enumerate(subjects, start=1)]
    why = _why_no_faces(subjects, hears=self.judges_sound)
    return people, [], _Part.unjudged(FACES, why, self.calibration)

  def _judge_sound(
    self, clip: media.Clip, clock: "_Clock"
  ) -> tuple[tuple[SoundWindow, ...], tuple[SoundWindow, ...], "_Part"]:
    least_s = max(LEAST_SOUND_S, _LEAST_OF_WINDOW * self.window.samples / media.SAMPLE_RATE_HZ)
    wanted = {"window": self.window, "most": _SOUND_WINDOWS, "least_s": least_s}
    if windows := examples.sound_windows(clip, **wanted):
      return self._of_sound(windows, self._judge_windows(windows, self.sound_inputs, clock))
    code = examples.sound_problem(clip, **wanted) or "no_speech"
    why = reasons.unjudged_sound(code, examples.sound_numbers(clip, code, **wanted))
    return (), (), _Part.unjudged(SOUND, (why,), self.sound_calibration)

  def _judge_windows(self, windows: list[dict], keys: tuple[str, ...], clock: "_Clock") -> Judgement:
    inputs = examples.stack([examples.model_inputs(w, window=self.window, keys=keys) for w in windows])
    with clock("compile_s"):
      self._begin_compiling(self._batch_size(len(windows)), keys).result()
    with clock("model_s"):
      return self.judge(inputs)

  def _of_faces(
    self, subjects: list[examples.Subject], windows: list[list[dict]], judged: Judgement
  ) -> tuple[list[Person], list[Evidence], "_Part"]:
    ends = np.cumsum([len(of_person) for of_person in windows])
    rows_of = [np.arange(end - len(own), end) for end, own in zip(ends, windows, strict=True)]
    people, evidence = [], []
    for number, (subject, own, rows) in enumerate(zip(subjects, windows, rows_of, strict=True), start=1):
      by_sighting = np.full(len(subject.boxes), np.nan)
      for window, row in zip(own, rows, strict=True):
        for frame in np.flatnonzero(window["face_mask"]):
          time_s = window["frame_times_s"][frame]
          sighting = int(np.abs(subject.frame_times_s - time_s).argmin())
          probability = float(self.calibration.probability(judged.frame_logits[row, frame]))
          by_sighting[sighting] = probability
          if judged.region is not None:
            evidence.append(
              Evidence(
                person=number,
                time_s=float(subject.frame_times_s[sighting]),
                crop=faces.eval_crop(window["faces"][frame]),
                region_map=judged.region[row, frame],
                probability=probability,
                place=faces.eval_place(subject.transforms[sighting]),
              )
            )
      whole = float(self.calibration.probability(judged.logits[rows].mean())) if len(rows) else None
      people.append(_person(number, subject, by_sighting, whole))
    means = np.array([judged.logits[own].mean() if len(own) else np.nan for own in rows_of])
    deciding = deciding_person(np.array([len(own) for own in rows_of]), means)
    rows, person = rows_of[deciding], people[deciding]
    outcome = self.calibration.outcome(float(judged.logits[rows].mean()))
    seen = np.array([s.probability for s in person.sightings if s.probability is not None])
    part = _Part(
      name=FACES,
      outcome=outcome,
      probability=person.deepfake_probability,
      consistency=frame_consistency(seen),
      reasons=_why(outcome, person, people, self.calibration),
      branches=_branch_verdicts(judged, rows, self.calibration),
      thresholds=self.calibration.thresholds,
      rates=self.calibration.rates,
    )
    return people, evidence, part

  def _of_sound(
    self, windows: list[dict], judged: Judgement
  ) -> tuple[tuple[SoundWindow, ...], tuple[SoundWindow, ...], "_Part"]:
    calibration = self.sound_calibration
    logit = float(judged.logits.mean())
    outcome, probability = calibration.outcome(logit), float(calibration.probability(logit))
    stretches, moments = [], []
    for row, window in enumerate(windows):
      start_s = float(window["start_s"])
      end_s = start_s + len(window["sound"]) / media.SAMPLE_RATE_HZ
      stretches.append(SoundWindow(start_s, end_s, float(calibration.probability(judged.logits[row]))))
      for moment, middle_s in judged.moments[row] if judged.moments is not None else ():
        if middle_s > 0 and start_s + middle_s < end_s:
          half = MOMENT_S / 2
          place = (start_s + middle_s - half, min(start_s + middle_s + half, end_s))
          moments.append(SoundWindow(*place, float(calibration.probability(moment))))
    # Where windows overlap, so do their moments.
    moments.sort(key=lambda moment: (moment.start_s, moment.end_s))
    part = _Part(
      name=SOUND,
      outcome=outcome,
      probability=probability,
      consistency=None,
      reasons=_why_sound(outcome, probability, stretches, moments, calibration),
      branches=_branch_verdicts(judged, np.arange(len(windows)), calibration),
      thresholds=calibration.thresholds,
      rates=calibration.rates,
    )
    return tuple(stretches), tuple(moments), part


@dataclasses.dataclass(frozen=True)
class _Part:
  """What is said of the faces, or of the sound, of a file; probability None: they were not judged."""

  name: str
  outcome: str
  probability: float | None
  consistency: float | None
  reasons: tuple[Reason, ...]
  branches: dict[str, BranchVerdict]
  thresholds: Thresholds
  rates: OutcomeRates | None = None

  @classmethod
  def unjudged(cls, name: str, reasons: tuple[Reason, ...], calibration: Calibration) -> "_Part":
    return cls(name, NOT_APPLICABLE, None, None, reasons, {}, calibration.thresholds)

  def said(self) -> dict:
    """What Faces and Sound have in common."""
    return {
      "outcome": self.outcome,
      "deepfake_probability": self.probability,
      "reasons": tuple(r.code for r in self.reasons) if self.probability is None else (),
      "thresholds": self.thresholds,
    }


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


def _lower(config: Config, variables: dict, size: int, keys: tuple[str, ...]) -> jax.stages.Lowered:
  # Only where the network has to be traced: a program that was kept runs without Flax.
  from deepscan_jax.models.detector import Detector as Network
  from deepscan_jax.models.detector import branches_that_read, leave_one_out

  branches = branches_that_read(config.model, keys)
  network = Network(dataclasses.replace(config.model, branches=branches))

  def apply(variables: dict, batch: dict) -> dict:
    output = network.apply(variables, batch, train=False)
    answer = {
      "logit": output.logit,
      "branch_logits": {name: branch.logit for name, branch in output.branches.items()},
      "branch_weights": {name: output.weights[:, i] for i, name in enumerate(branches)},
    }
    if len(branches) > 1:
      answer["without"] = leave_one_out(network.config, variables, output)
    maps = [branch.maps for branch in output.branches.values()]
    if drawn := [m["region"] for m in maps if "region" in m]:
      answer["region"] = jax.nn.sigmoid(drawn[0])
    # A single frame's logit is that of its example, with all that the fusion knows.
    of_frames = [m["frame_logit"] for m in maps if "frame_logit" in m]
    if of_frames and of_frames[0].shape[1] > 1:
      answer["frame_logits"] = sum(of_frames) / len(of_frames)
    if heard := [m for m in maps if "window_times_s" in m and "shift_logit" not in m]:
      answer["moments"] = jnp.stack([heard[0]["window_logit"], heard[0]["window_times_s"]], axis=-1)
    return answer

  shapes = examples.input_shapes(config.data.window)
  batch = {key: jax.ShapeDtypeStruct((size, *shapes[key][0]), shapes[key][1]) for key in keys}
  return jax.jit(apply).lower(variables, batch)


def _branch_verdicts(
  judged: Judgement, rows: np.ndarray, calibration: Calibration
) -> dict[str, BranchVerdict]:
  weights = {name: float(x[rows].mean()) for name, x in judged.branch_weights.items()}
  whole = float(calibration.score(judged.logits[rows].mean()))
  said = {}
  for name, logits in judged.branch_logits.items():
    verdict = BranchVerdict(float(calibration.probability(logits[rows].mean())), weights[name])
    # Of a branch that was alone with the file nothing is left to compare with; nor did one that was hidden
    # throughout say anything.
    if name in judged.without and any(w for other, w in weights.items() if other != name):
      logit = judged.without[name][rows].mean()
      verdict = dataclasses.replace(
        verdict,
        contribution=whole - float(calibration.score(logit)),
        probability_without=float(calibration.probability(logit)),
      )
    said[name] = verdict
  return said


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


def deciding_person(counts: np.ndarray, mean_logits: np.ndarray) -> int:
  """The index of the person with the highest mean logit among those who are seen enough to decide for the
  file.

  Args:
    counts: [person] windows in which each was judged; not all 0.
    mean_logits: [person] of these; of no account where there are none.
  """
  most = max(counts)
  needed = max(min(_DECIDING_FRAMES, most), _DECIDING_SHARE * most)
  candidates = [i for i, count in enumerate(counts) if count >= needed]
  return max(candidates, key=lambda i: mean_logits[i])


def faces_decide(*, of_faces: str, of_sound: str) -> bool:
  """Whether the faces decide for a file of which the sound was judged too, by the outcomes of both.

  They do unless the sound alone is likely_manipulated: probabilities of the two do not compare, and a doubt
  about the sound says nothing of the faces.
  """
  return of_sound != LIKELY_MANIPULATED or of_faces == LIKELY_MANIPULATED


def _most_suspicious_first(person: Person) -> tuple[float, int]:
  return (-1.0 if person.deepfake_probability is None else person.deepfake_probability) * -1, person.id


def _why(outcome: str, person: Person, people: list[Person], calibration: Calibration) -> tuple[Reason, ...]:
  found = []
  thresholds = calibration.thresholds
  if outcome == LIKELY_MANIPULATED:
    found.append(reasons.blending_traces(person, thresholds))
  if outcome == INCONCLUSIVE:
    found.append(reasons.between_thresholds(person.deepfake_probability, thresholds))
  for other in people:
    suspicious = (other.deepfake_probability or 0.0) >= thresholds.manipulated
    if suspicious and other is not person and outcome != LIKELY_MANIPULATED:
      found.append(reasons.brief_person_suspicious(other))
  if person.judged < 3 <= len(person.sightings):
    found.append(reasons.few_judged_frames(person))
  return tuple(found)


def _why_sound(
  outcome: str,
  probability: float,
  windows: list[SoundWindow],
  moments: list[SoundWindow],
  calibration: Calibration,
) -> tuple[Reason, ...]:
  thresholds = calibration.thresholds
  if outcome == LIKELY_MANIPULATED:
    return (reasons.synthetic_voice_traces(windows, moments, thresholds),)
  if outcome == INCONCLUSIVE:
    return (reasons.between_thresholds(probability, thresholds, sound=True),)
  return ()


def _why_no_faces(subjects: list[examples.Subject], *, hears: bool) -> tuple[Reason, ...]:
  if not subjects:
    return (reasons.no_face(hears=hears),)
  codes = sorted({code for subject in subjects for codes in subject.reasons for code in codes})
  return reasons.unjudged_faces(codes, [q for subject in subjects for q in subject.quality])


def _why_nothing(kind: str, parts: dict) -> tuple[Reason, ...]:
  """Why nothing of a file was looked at; no reason where something was."""
  return () if parts else (reasons.not_supported("audio" if kind == "audio" else "image"),)


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
