"""Scores of held-out examples, one by one in eval mode as the detector sees them.

Models are calibrated and measured by them.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepscan_jax import checkpoints, data, metrics
from deepscan_jax.calibration import calibrate
from deepscan_jax.inference import CALIBRATIONS, Detector


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
  """

  labels: np.ndarray
  logits: np.ndarray
  group: np.ndarray
  source: np.ndarray
  kind: np.ndarray
  has_faces: np.ndarray
  paired: bool

  @property
  def real(self) -> np.ndarray:
    """Logits of the real examples."""
    return self.logits[self.labels == 0]

  @property
  def fake(self) -> np.ndarray:
    """Logits of the fake examples."""
    return self.logits[self.labels == 1]

  def summary(self) -> dict[str, float]:
    """AUC of single examples, accuracy at logit 0, and how often a fake scores above its own twin."""
    figures = {
      "auc": metrics.auc(self.labels, self.logits),
      "accuracy": metrics.accuracy(self.labels, self.logits),
    }
    if self.paired:
      figures["paired_accuracy"] = metrics.paired_accuracy(self.real, self.fake)
    return figures

  def auc_interval(self) -> tuple[float, float]:
    """95 % interval of the AUC, by bootstrap over groups."""
    return metrics.bootstrap_interval(metrics.auc, self.labels, self.logits, groups=self.group)

  def rows(self, keep: np.ndarray) -> "Scores":
    """The examples where keep [example] is True."""
    return Scores(**{name: getattr(self, name)[keep] for name in _COLUMNS}, paired=self.paired)

  def __add__(self, other: "Scores") -> "Scores":
    joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _COLUMNS}
    return Scores(**joined, paired=self.paired and other.paired)


_COLUMNS = tuple(field.name for field in dataclasses.fields(Scores) if field.name != "paired")


def score(
  predict: Callable[[dict[str, np.ndarray]], np.ndarray],
  held_out: data.HeldOutPairs | data.HeldOutExamples,
  *,
  limit: int,
  batch_size: int,
) -> Scores:
  """Scores held-out pairs or examples.

  Args:
    predict: batch -> logits [batch] float.
    held_out: what to score.
    limit: at most so many pairs or examples, evenly spread; 0 = all.
    batch_size: rows in a batch.
  """
  labels, logits, has_faces, facts = [], [], [], []
  for batch, rows in data.held_out_batches(held_out, limit=limit, batch_size=batch_size):
    valid = batch["example_mask"]
    labels.append(batch["label"][valid])
    logits.append(np.asarray(predict(batch), np.float64)[valid])
    seen = batch["crop_mask"].any(axis=1) if "crop_mask" in batch else np.zeros(len(valid), bool)
    has_faces.append(seen[valid])
    facts += [row for row in rows for _ in range(held_out.rows)]
  return Scores(
    labels=np.concatenate(labels),
    logits=np.concatenate(logits),
    group=np.array([f["group"] for f in facts]),
    source=np.array([f["source"] for f in facts]),
    kind=np.array([f["kind"] for f in facts]),
    has_faces=np.concatenate(has_faces),
    paired=held_out.rows == 2,
  )


def calibrate_model(folder: str | Path, *, data_dir: str | Path, false_positive_rate: float = 0.05) -> dict:
  """Fits a model's probabilities and thresholds on the validation split and writes them into the model.

  What the data say nothing about keeps its calibration.

  Args:
    folder: of the model.
    data_dir: where the datasets of its configuration are.
    false_positive_rate: share of real pictures of any source that may be called manipulated.

  Returns:
    The calibrations as they were written, by inference.CALIBRATIONS: of examples with faces and of sound
    alone, where the data hold them.
  """
  detector = Detector(folder, calibrated=False)
  scores = held_out_scores(detector, data_dir=data_dir, split="validation")
  facts = {k: v for k, v in checkpoints.read_model(folder).items() if k != "sha256"}
  found = {}
  for key, faces in zip(CALIBRATIONS, (True, False), strict=True):
    every, real = (scores[kind].rows(scores[kind].has_faces == faces) for kind in ("all", "untouched"))
    if len(every.labels):
      found[key] = dataclasses.asdict(
        calibrate(
          every.labels,
          every.logits,
          real_logits=real.real,
          real_sources=real.source[real.labels == 0],
          real_groups=real.group[real.labels == 0],
          false_positive_rate=false_positive_rate,
        )
      )
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
  scores = held_out_scores(detector, data_dir=data_dir, split=split)
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
  for source in np.unique(real.source):
    rows = real.rows((real.source == source) & (real.labels == 0))
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


def held_out_scores(detector: Detector, *, data_dir: str | Path, split: str) -> dict[str, Scores]:
  """Scores of a split by kind: of untouched examples, and of pairs where the model's data has pseudo-fakes.

  Returns:
    {"untouched", "plain", "degraded", "all"}: "all" is plain and degraded pairs together. Without
    pseudo-fakes {"untouched", "all"}, both the same.
  """
  config = detector.config.data

  def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
    return detector.judge({key: batch[key] for key in detector.inputs}).logits

  def scored(*, degraded: bool | None) -> Scores:
    held_out = data.held_out(config, split, data_dir=data_dir, inputs=detector.inputs, degraded=degraded)
    return score(predict, held_out, limit=0, batch_size=32)

  untouched = scored(degraded=None)
  if not config.pseudofakes:
    return {"untouched": untouched, "all": untouched}
  plain, degraded = (scored(degraded=d) for d in (False, True))
  return {"untouched": untouched, "plain": plain, "degraded": degraded, "all": plain + degraded}
