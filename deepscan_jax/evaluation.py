"""Scores of held-out examples, single pictures in eval mode as the detector sees them.

Models are calibrated and measured by them.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepscan_jax import checkpoints, data, metrics
from deepscan_jax.calibration import calibrate
from deepscan_jax.inference import Detector


@dataclasses.dataclass(frozen=True)
class Scores:
  """Logits of held-out examples; the rows of a pair stand together, the real one first.

  Attributes:
    labels: [example] int, 1 = fake.
    logits: [example] float64.
    group: [example] str; examples of one group are not independent.
    source: [example] str.
    paired: whether rows 2i and 2i + 1 are a real face and its pseudo-fake.
  """

  labels: np.ndarray
  logits: np.ndarray
  group: np.ndarray
  source: np.ndarray
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
    """AUC of single pictures, accuracy at logit 0, and how often a fake scores above its own twin."""
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
    return Scores(self.labels[keep], self.logits[keep], self.group[keep], self.source[keep], self.paired)

  def __add__(self, other: "Scores") -> "Scores":
    def join(column: str) -> np.ndarray:
      return np.concatenate([getattr(self, column), getattr(other, column)])

    return Scores(join("labels"), join("logits"), join("group"), join("source"), self.paired and other.paired)


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
  labels, logits, facts = [], [], []
  for batch, rows in data.held_out_batches(held_out, limit=limit, batch_size=batch_size):
    valid = batch["example_mask"]
    labels.append(batch["label"][valid])
    logits.append(np.asarray(predict(batch), np.float64)[valid])
    facts += [row for row in rows for _ in range(held_out.rows)]
  return Scores(
    labels=np.concatenate(labels),
    logits=np.concatenate(logits),
    group=np.array([f["group"] for f in facts]),
    source=np.array([f["source"] for f in facts]),
    paired=held_out.rows == 2,
  )


def calibrate_model(folder: str | Path, *, data_dir: str | Path, false_positive_rate: float = 0.05) -> dict:
  """Fits a model's probabilities and thresholds on the validation split and writes them into the model.

  Args:
    folder: of the model.
    data_dir: where the datasets of its configuration are.
    false_positive_rate: share of real pictures of any source that may be called manipulated.

  Returns:
    The calibration as it was written.
  """
  detector = Detector(folder, calibrated=False)
  scores = held_out_scores(detector, data_dir=data_dir, split="validation")
  every, real = scores["all"], scores["untouched"]
  fitted = calibrate(
    every.labels,
    every.logits,
    real_logits=real.real,
    real_sources=real.source[real.labels == 0],
    real_groups=real.group[real.labels == 0],
    false_positive_rate=false_positive_rate,
  )
  facts = {k: v for k, v in checkpoints.read_model(folder).items() if k != "sha256"}
  checkpoints.write_model_json(folder, {**facts, "calibration": dataclasses.asdict(fitted)})
  return dataclasses.asdict(fitted)


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
  real, threshold = scores.pop("untouched"), detector.calibration.manipulated
  figures: dict = {
    "split": split,
    "model": detector.metadata,
    "pairs": {},
    "false_alarms": {},
    "detected": {},
  }
  for kind, s in scores.items():
    figures["pairs"][kind] = {**s.summary(), "auc_interval": s.auc_interval(), "count": len(s.labels)}
    figures["detected"][kind] = float(np.mean(s.fake >= threshold))
  false_alarms = functools.partial(metrics.false_positive_rate, threshold=threshold)
  for source in np.unique(real.source):
    rows = real.rows((real.source == source) & (real.labels == 0))
    figures["false_alarms"][str(source)] = {
      "rate": false_alarms(rows.logits),
      "interval": _rate_interval(false_alarms, rows),
      "count": len(rows.logits),
    }
  return figures


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
  source = data.ExampleSource(config.datasets, split, data_dir)

  def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
    return detector.judge({key: batch[key] for key in ("crops", "crop_mask")}).logits

  def scored(held_out: data.HeldOutPairs | data.HeldOutExamples) -> Scores:
    return score(predict, held_out, limit=0, batch_size=32)

  untouched = scored(data.HeldOutExamples(source))
  if not config.pseudofakes:
    return {"untouched": untouched, "all": untouched}
  plain, degraded = (scored(data.HeldOutPairs(source, config, degraded=d)) for d in (False, True))
  return {"untouched": untouched, "plain": plain, "degraded": degraded, "all": plain + degraded}
