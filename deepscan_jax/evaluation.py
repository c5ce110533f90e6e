"""Scores of held-out examples: single pictures in eval mode, as the detector sees them."""

import dataclasses
from collections.abc import Callable

import numpy as np

from deepscan_jax import data, metrics


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
    """AUC with every picture on its own, accuracy at logit 0, and how often a fake scores above its own twin."""
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
