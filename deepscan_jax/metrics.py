"""Metrics of scores against labels in plain numpy; label 1 = fake, higher score = more likely fake."""

import itertools
from collections.abc import Callable

import numpy as np


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
  """Area under the ROC curve: the probability that a fake scores above a real one, ties counted half.

  Computed from ranks (Mann-Whitney U / (fakes * reals)).

  Args:
    labels: [example] 0 or 1.
    scores: [example] float.

  Returns:
    0..1, or NaN where one of the classes is missing.
  """
  from scipy.stats import rankdata  # Takes a while to import, and detect does without.

  labels = np.asarray(labels, bool)
  fakes, reals = int(labels.sum()), int((~labels).sum())
  if not fakes or not reals:
    return float("nan")
  ranks = rankdata(scores)
  return float((ranks[labels].sum() - fakes * (fakes + 1) / 2) / (fakes * reals))


def accuracy(labels: np.ndarray, scores: np.ndarray, *, threshold: float = 0.0) -> float:
  """Share of examples on the right side of the threshold (score >= threshold means fake)."""
  return float(np.mean((np.asarray(scores) >= threshold) == np.asarray(labels, bool)))


def confusion(labels: np.ndarray, scores: np.ndarray, *, threshold: float = 0.0) -> np.ndarray:
  """How many examples of each label (rows: real, fake) are called what (columns: real, fake): int [2, 2]."""
  called = np.asarray(scores) >= threshold
  cells = 2 * np.asarray(labels, np.int64) + called
  return np.bincount(cells, minlength=4).reshape(2, 2)


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The ROC curve: for every threshold, the share of reals and of fakes at or above it.

  Args:
    labels: [example] 0 or 1.
    scores: [example] float.

  Returns:
    (false positive rate, true positive rate), each [point] from 0 to 1; equal scores are one point. NaN of a
    class that is missing.
  """
  order = np.argsort(-np.asarray(scores), kind="stable")
  fakes, ordered = np.asarray(labels, bool)[order], np.asarray(scores)[order]
  last = np.append(ordered[1:] != ordered[:-1], True)
  with np.errstate(invalid="ignore"):
    rates = [np.append(0, np.cumsum(of)[last]) / of.sum() for of in (~fakes, fakes)]
  return rates[0], rates[1]


def thinned_curve(x: np.ndarray, y: np.ndarray, *, points: int = 128) -> tuple[np.ndarray, np.ndarray]:
  """A rising curve from (0, 0) to (1, 1) by at most so many of its points, evenly spread along it."""
  if len(x) <= points:
    return x, y
  along = x + y
  chosen = np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], points)))
  return x[chosen], y[chosen]


def false_positive_rate(real_scores: np.ndarray, *, threshold: float) -> float:
  """Share of real examples at or above the threshold."""
  return float(np.mean(np.asarray(real_scores) >= threshold))


def threshold_at(real_scores: np.ndarray, *, false_positive_rate: float) -> float:
  """The lowest score such that at most this share of the real examples reaches it.

  Args:
    real_scores: [example] float.
    false_positive_rate: 0..1.
  """
  ordered = np.sort(np.asarray(real_scores, np.float64))[::-1]
  allowed = int(np.floor(false_positive_rate * len(ordered)))
  return float(np.nextafter(ordered[min(allowed, len(ordered) - 1)], np.inf))


def paired_accuracy(real_scores: np.ndarray, fake_scores: np.ndarray) -> float:
  """How often a fake scores above its own real twin, ties counted half."""
  difference = np.asarray(fake_scores) - np.asarray(real_scores)
  return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def wilson_interval(rate: float, count: int) -> tuple[float, float]:
  """The 95 % interval of a rate seen in `count` independent trials (Wilson 1927); honest for 0 of few too."""
  z = 1.959964
  middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
  half = z * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
  return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def bootstrap_interval(
  metric: Callable[..., float], *arrays: np.ndarray, groups: np.ndarray, seed: int = 0, draws: int = 1000
) -> tuple[float, float]:
  """The 95 % percentile interval of a metric, drawing whole groups with replacement.

  Examples of one person or one source picture are not independent; drawing them one by one would flatter the
  interval.

  Args:
    metric: f(*arrays) -> float.
    arrays: each [example, ...], drawn together.
    groups: [example] anything sortable; examples of one group are drawn together.
    seed: of the draws.
    draws: number of resamples.

  Returns:
    (2.5 %, 97.5 %) percentiles; resamples where the metric is NaN are left out.
  """
  rng = np.random.default_rng(seed)
  _, member = np.unique(np.asarray(groups), return_inverse=True)
  order = np.argsort(member, kind="stable")
  bounds = np.searchsorted(member[order], np.arange(member.max() + 2))
  rows_of = [order[a:b] for a, b in itertools.pairwise(bounds)]
  values = []
  for _ in range(draws):
    rows = np.concatenate([rows_of[g] for g in rng.integers(len(rows_of), size=len(rows_of))])
    values.append(metric(*(np.asarray(array)[rows] for array in arrays)))
  low, high = np.nanpercentile(values, [2.5, 97.5])
  return float(low), float(high)
