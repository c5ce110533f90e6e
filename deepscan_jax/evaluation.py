"""Scores of held-out examples, one by one in eval mode as the detector sees them.

Models are calibrated and measured by them.
"""

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepscan_jax import checkpoints, data, metrics, protocols
from deepscan_jax.calibration import calibrate
from deepscan_jax.config import DataConfig
from deepscan_jax.inference import CALIBRATIONS, Detector, load_detector
from deepscan_jax.perturb import Rung
from deepscan_jax.stopping import Interrupted, StopRequest


@dataclasses.dataclass(frozen=True)
class Scores:
  """Logits of held-out examples; the rows of a pair stand together, the real one first.

  Attributes:
    labels: [example] int, 1 = fake.
    logits: [example] float64.
    group: [example] str; examples of one group are not independent.
    source: [example] str.
    kind: [example] str: what is forged in the pair, or in an example by itself what it holds; see
      data.PSEUDOFAKES.
    has_faces: [example] bool; others are sound alone.
    paired: whether rows 2i and 2i + 1 are a real example and its pseudo-fake.
    id: [example] str, unique but for the two rows of a pair: the dataset and the example's own; "" where it
      is not known, as by default.
    video: [example] str: of which file it is a part, and how that was degraded; with `labels` and `has_faces`
      this tells videos apart, for the twins of a video's examples are a video too. "", as by default: a file
      of its own.
  """

  labels: np.ndarray
  logits: np.ndarray
  group: np.ndarray
  source: np.ndarray
  kind: np.ndarray
  has_faces: np.ndarray
  paired: bool
  id: np.ndarray | None = None
  video: np.ndarray | None = None

  def __post_init__(self):
    for name in ("id", "video"):
      if getattr(self, name) is None:
        object.__setattr__(self, name, np.full(len(self.labels), ""))

  @property
  def real(self) -> np.ndarray:
    """Logits of the real examples."""
    return self.logits[self.labels == 0]

  @property
  def fake(self) -> np.ndarray:
    """Logits of the fake examples."""
    return self.logits[self.labels == 1]

  def summary(self) -> dict[str, float]:
    """AUC and accuracy at logit 0, of single examples and of videos; how often a fake scores above its twin.

    A video's score is the mean of its examples' logits.
    """
    labels, logits = self.videos()
    figures = {
      "auc": metrics.auc(self.labels, self.logits),
      "accuracy": metrics.accuracy(self.labels, self.logits),
      "video_auc": metrics.auc(labels, logits),
      "video_accuracy": metrics.accuracy(labels, logits),
    }
    if self.paired:
      figures["paired_accuracy"] = metrics.paired_accuracy(self.real, self.fake)
    return figures

  def videos(self) -> tuple[np.ndarray, np.ndarray]:
    """Labels [video] int and mean logits [video] float64 of whole files (videos, pictures or recordings).

    The sound of a file that is judged by itself counts beside its faces, as in a verdict.
    """
    rows = zip(self.video.tolist(), self.labels.tolist(), self.has_faces.tolist(), strict=True)
    number: dict[tuple, int] = {}
    keys = (row if row[0] else (i, *row[1:]) for i, row in enumerate(rows))
    of_row = np.array([number.setdefault(key, len(number)) for key in keys], int)
    labels = np.array([label for _, label, _ in number], int)
    return labels, np.bincount(of_row, self.logits, len(number)) / np.bincount(of_row, minlength=len(number))

  def auc_interval(self) -> tuple[float, float]:
    """95 % interval of the AUC, by bootstrap over groups."""
    return metrics.bootstrap_interval(metrics.auc, self.labels, self.logits, groups=self.group)

  def rows(self, keep: np.ndarray) -> "Scores":
    """The examples where keep [example] is True."""
    return Scores(**{name: getattr(self, name)[keep] for name in COLUMNS}, paired=self.paired)

  def __add__(self, other: "Scores") -> "Scores":
    joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in COLUMNS}
    return Scores(**joined, paired=self.paired and other.paired)


# The fields of `Scores` that have a value for each example.
COLUMNS = tuple(field.name for field in dataclasses.fields(Scores) if field.name != "paired")


def score(
  predict: Callable[[dict[str, np.ndarray]], np.ndarray],
  held_out: data.HeldOutPairs | data.HeldOutExamples,
  *,
  limit: int,
  batch_size: int,
  shard: tuple[int, int] = (0, 1),
) -> Scores:
  """Scores held-out pairs or examples, or one of several parts of them; see `merged`.

  Args:
    predict: batch -> logits [batch] float.
    held_out: what to score.
    limit: at most so many pairs or examples, evenly spread; 0 = all.
    batch_size: rows in a batch.
    shard: (index, count) of the part; see `data.held_out_batches`.
  """
  labels, logits, has_faces, facts = [], [], [], []
  for batch, rows in data.held_out_batches(held_out, limit=limit, batch_size=batch_size, shard=shard):
    valid = batch["example_mask"]
    labels.append(batch["label"][valid])
    logits.append(np.asarray(predict(batch), np.float64)[valid])
    seen = batch["crop_mask"].any(axis=1) if "crop_mask" in batch else np.zeros(len(valid), bool)
    has_faces.append(seen[valid])
    facts += [row for row in rows for _ in range(held_out.rows)]
  ids = [f"{f['dataset']}:{f['id']}" for f in facts]
  ending = "#degraded" if getattr(held_out, "degraded", False) else ""
  # A part may hold nothing, where there are more processes than pairs.
  return Scores(
    labels=np.concatenate([np.zeros(0, np.int32), *labels]),
    logits=np.concatenate([np.zeros(0), *logits]),
    group=np.array([f["group"] for f in facts], str),
    source=np.array([f["source"] for f in facts], str),
    kind=np.array([f["kind"] for f in facts], str),
    has_faces=np.concatenate([np.zeros(0, bool), *has_faces]),
    paired=held_out.rows == 2,
    id=np.array(ids, str),
    # An example's id ends in its place in the file.
    video=np.array([name.rpartition("#")[0] + ending for name in ids], str),
  )


def merged(parts: Sequence[Scores]) -> Scores:
  """The scores of all examples in their order, from those of all parts in theirs; undoes the `shard` of
  `score`."""
  rows = 2 if parts[0].paired else 1
  places = [np.arange(len(part.labels)) // rows * len(parts) + index for index, part in enumerate(parts)]
  # Stable: both twins of a pair have its place, the real one first.
  order = np.argsort(np.concatenate(places), kind="stable")
  return functools.reduce(operator.add, parts).rows(order)


def evaluate(
  model: Detector | str | Path | None = None, *, data_dir: str | Path, split: str = "test"
) -> dict:
  """Figures of a calibrated model on a split of the datasets that it was trained on.

  Args:
    model: a Detector, or the folder of one; None: the model that comes with the package.
    data_dir: where the datasets are.
    split: "test": by the others the model was trained and chosen.

  Returns:
    See `measure_model`.

  Raises:
    CheckpointError: the model is missing, damaged or not calibrated.
    FileNotFoundError: a dataset has not been built.
    ValueError: the split has no examples, or is not "test".
  """
  detector = model if isinstance(model, Detector) else load_detector(model)
  protocols.check_split(detector.config.data.datasets, detector.config.data.datasets, split)
  return measure_model(detector, data_dir=data_dir, split=split)


def calibrate_model(
  folder: str | Path,
  *,
  data_dir: str | Path,
  false_positive_rate: float = 0.05,
  method: str = "platt",
  scores: dict[str, Scores] | None = None,
) -> dict:
  """Fits a model's probabilities and thresholds on the validation split and writes them into the model.

  What the data say nothing about, or of which they hold one class alone, keeps its calibration; the latter is
  said in a warning.

  Args:
    folder: of the model.
    data_dir: where the datasets of its configuration are.
    false_positive_rate: share of real pictures of any source that may be called manipulated.
    method: of calibration.METHODS, for probabilities; thresholds are of logits and the same with each.
    scores: `held_out_scores` of this very model on its validation split, where they are there already.

  Returns:
    The calibrations as they were written, by inference.CALIBRATIONS: of examples with faces and of sound
    alone, where the data hold both classes of them.

  Raises:
    ValueError: the data hold both classes of neither.
  """
  if scores is None:
    detector = Detector(folder, calibrated=False)
    scores = held_out_scores(detector, data_dir=data_dir, split="validation")
  facts = {k: v for k, v in checkpoints.read_model(folder).items() if k != "sha256"}
  found, lacking = {}, []
  for key, faces in zip(CALIBRATIONS, (True, False), strict=True):
    every, real = (scores[kind].rows(scores[kind].has_faces == faces) for kind in ("all", "untouched"))
    if len(every.real) and len(every.fake):
      found[key] = calibrate(
        every.labels,
        every.logits,
        real_logits=real.real,
        real_sources=real.source[real.labels == 0],
        real_groups=real.group[real.labels == 0],
        false_positive_rate=false_positive_rate,
        method=method,
        groups=every.group,
      ).to_dict()
    elif len(every.labels):
      what = "examples with faces" if faces else "sound alone"
      lacking.append(
        f"of {what} the validation split holds {len(every.real)} real and {len(every.fake)} fake"
      )
  if not found:
    raise ValueError(
      f"{folder} cannot be calibrated, which needs both classes: {', and '.join(lacking) or 'no scores'}; "
      "add what is missing, or another dataset."
    )
  for sentence in lacking:
    logging.warning("A part of %s keeps the calibration that it had, or none: %s.", folder, sentence)
  checkpoints.write_model_json(folder, {**facts, **found})
  return found


def measure_model(detector: Detector, *, data_dir: str | Path, split: str = "test") -> dict:
  """Figures of a calibrated model on a split, with 95 % intervals by bootstrap over groups.

  Args:
    detector: the model.
    data_dir: where the datasets of its configuration are.
    split: "test", unless one looks at what calibration saw.

  Returns:
    {"pairs": {kind: {"auc", "auc_interval", "accuracy", "paired_accuracy", "count"}}, "false_alarms":
    {source: {"rate", "interval", "count"}}, "detected": {kind: rate}}: kinds are plain, degraded and all;
    false alarms are untouched real pictures at or above the shipped threshold.
  """
  return measure_scores(held_out_scores(detector, data_dir=data_dir, split=split), detector, split=split)


def measure_scores(scores: dict[str, Scores], detector: Detector, *, split: str) -> dict:
  """`measure_model` of what `held_out_scores` found."""
  scores = dict(scores)
  real = scores.pop("untouched")
  figures: dict = {
    "split": split,
    "model": detector.metadata,
    "pairs": {},
    "false_alarms": {},
    "detected": {},
  }
  for kind, s in scores.items():
    parts = {kind: s}
    if len(forged := np.unique(s.kind)) > 1:
      parts |= {f"{kind}, {name}": s.rows(s.kind == name) for name in forged}
    for name, part in parts.items():
      figures["pairs"][name] = {
        **part.summary(),
        "auc_interval": part.auc_interval(),
        "count": len(part.labels),
      }
      fakes = part.rows(part.labels == 1)
      figures["detected"][name] = float(np.mean(fakes.logits >= _thresholds(detector, fakes)))
  # A source may hold fakes alone.
  real = real.rows(real.labels == 0)
  for source in np.unique(real.source):
    rows = real.rows(real.source == source)
    over = rows.logits - _thresholds(detector, rows)
    rows = dataclasses.replace(rows, logits=over)
    false_alarms = functools.partial(metrics.false_positive_rate, threshold=0.0)
    figures["false_alarms"][str(source)] = {
      "rate": false_alarms(rows.logits),
      "interval": _rate_interval(false_alarms, rows),
      "count": len(rows.logits),
    }
  return figures


def _thresholds(detector: Detector, scores: Scores) -> np.ndarray:
  """[example] the logit from which on each is called manipulated; infinite where the model does not judge."""
  of_faces, of_sound = (
    np.inf if calibration is None else calibration.manipulated
    for calibration in (detector.calibration, detector.sound_calibration)
  )
  return np.where(scores.has_faces, of_faces, of_sound)


def _rate_interval(rate: Callable[[np.ndarray], float], rows: Scores) -> tuple[float, float]:
  """The bootstrap's interval over groups, but no narrower than so many groups allow: a resample of no alarms
  has none."""
  low, high = metrics.bootstrap_interval(rate, rows.logits, groups=rows.group)
  least_low, least_high = metrics.wilson_interval(rate(rows.logits), len(np.unique(rows.group)))
  return min(low, least_low), max(high, least_high)


def held_out(
  detector: Detector,
  config: DataConfig,
  split: str,
  *,
  data_dir: str | Path,
  degraded: bool | None = None,
  rung: Rung | None = None,
) -> data.HeldOutPairs | data.HeldOutExamples:
  """`data.held_out` for a model, without inputs of which no example of the split holds anything.

  A model that hears and sees answers pictures as if it were deaf; neither their silence nor the network that
  would listen to it need be worked out. Batches are for `Detector.judge_held`.

  Args:
    detector: the model.
    config: which datasets; of pairs, how they are made.
    split, data_dir, degraded, rung: as of `data.held_out`.
  """
  found = data.held_out(
    config, split, data_dir=data_dir, inputs=detector.inputs, degraded=degraded, rung=rung
  )
  needed = detector.inputs_without(found.source.empty)
  return dataclasses.replace(found, source=found.source.reading(needed))


def held_out_scores(
  detector: Detector, *, data_dir: str | Path, split: str, request: StopRequest | None = None
) -> dict[str, Scores]:
  """Scores of a split by kind: of untouched examples, and of pairs where the model's data has pseudo-fakes.

  Args:
    detector: the model.
    data_dir: where the datasets of its configuration are.
    split: "validation" or "test".
    request: breaks the scoring off once it holds a signal.

  Returns:
    {"untouched", "plain", "degraded", "all"}: "all" is plain and degraded pairs together. Without
    pseudo-fakes {"untouched", "all"}, both the same.

  Raises:
    Interrupted: the scoring was broken off.
  """
  config = detector.config.data

  def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
    if request:
      raise Interrupted(request.number)
    return detector.judge_held(batch).logits

  def scored(*, degraded: bool | None) -> Scores:
    read = held_out(detector, config, split, data_dir=data_dir, degraded=degraded)
    return score(predict, read, limit=0, batch_size=32)

  untouched = scored(degraded=None)
  if not config.pseudofakes:
    return {"untouched": untouched, "all": untouched}
  plain, degraded = (scored(degraded=d) for d in (False, True))
  return {"untouched": untouched, "plain": plain, "degraded": degraded, "all": plain + degraded}
