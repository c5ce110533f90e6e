"""Metrics of scores against labels in plain numpy; label 1 = fake, higher score = more likely fake."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

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


# Curves and what is read off them -----------------------------------------------------------------------
#
# All of these take weights [..., example], which stand for so many copies of each example, with any axes in
# front: one ranking then serves all resamples of a bootstrap at once. What is undefined is NaN.

# Probabilities nearer to 0 or 1 than this count as this in the log loss, which would otherwise be infinite.
_LEAST_PROBABILITY = 1e-7
RELIABILITY_BINS = 15


@dataclasses.dataclass(frozen=True)
class Ranking:
  """How many fakes and reals lie at or above each threshold, from none of them to all.

  Attributes:
    thresholds: [threshold] the distinct scores, falling, after infinity.
    fakes, reals: [..., threshold] weights of the examples whose score is at least the threshold.
  """

  thresholds: np.ndarray
  fakes: np.ndarray
  reals: np.ndarray

  @classmethod
  def of(cls, labels: np.ndarray, scores: np.ndarray, *, weights: np.ndarray | None = None) -> "Ranking":
    """Ranks examples; equal scores share a threshold, so that no order among them flatters anything.

    Args:
      labels: [example] 0 or 1.
      scores: [example] float.
      weights: [..., example], at least 0; None: 1 each.
    """
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_equals = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    weights = weights[..., order]

    def counted(of_class: np.ndarray) -> np.ndarray:
      above = np.cumsum(weights * of_class, axis=-1)
      if len(last_of_equals) < len(ranked):
        above = above[..., last_of_equals]
      return np.concatenate([np.zeros((*above.shape[:-1], 1)), above], axis=-1)

    is_fake = labels[order]
    thresholds = np.concatenate([[np.inf], ranked[last_of_equals]])
    return cls(thresholds, counted(is_fake), counted(~is_fake))

  @functools.cached_property
  def true_positive_rates(self) -> np.ndarray:
    """[..., threshold] share of the fakes at or above each threshold."""
    return _ratio(self.fakes, self.fakes[..., -1:])

  @functools.cached_property
  def false_positive_rates(self) -> np.ndarray:
    """[..., threshold] share of the reals at or above each threshold."""
    return _ratio(self.reals, self.reals[..., -1:])

  @property
  def precisions(self) -> np.ndarray:
    """[..., threshold] share of fakes among what is at or above each threshold."""
    return _ratio(self.fakes, self.fakes + self.reals)

  def auc(self) -> np.ndarray:
    """[...] area under the ROC curve, ties counted half."""
    tpr, fpr = self.true_positive_rates, self.false_positive_rates
    return (np.diff(fpr, axis=-1) * (tpr[..., 1:] + tpr[..., :-1]) / 2).sum(axis=-1)

  def average_precision(self) -> np.ndarray:
    """[...] sum of precision times the recall that each threshold adds, without interpolation."""
    gained = np.diff(self.true_positive_rates, axis=-1)
    # Thresholds that no weight reaches add no recall; all are NaN where there is no fake.
    terms = np.where(gained == 0, 0.0, self.precisions[..., 1:] * gained)
    return np.where(self.reals[..., -1] > 0, terms.sum(axis=-1), np.nan)

  def equal_error_rate(self) -> np.ndarray:
    """[...] where as many reals are called fake as fakes real, on the straight lines between thresholds.

    The nearest threshold in its place would depend on the order of few examples.
    """
    fpr, fnr = self.false_positive_rates, 1 - self.true_positive_rates
    excess = fpr - fnr
    # It rises from -1 to 1; the first threshold that is not below 0 ends the line that crosses.
    after = np.argmax(excess >= 0, axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    low, high = (np.take_along_axis(excess, at, -1) for at in (before, after))
    rates = [np.take_along_axis(fpr, at, -1) for at in (before, after)]
    share = np.where(high > low, -low / np.where(high > low, high - low, 1.0), 0.0)
    found = (rates[0] + share * (rates[1] - rates[0]))[..., 0]
    return np.where(np.isnan(excess).any(axis=-1), np.nan, found)

  def false_positive_rate_at(self, true_positive_rate: float) -> np.ndarray:
    """[...] the least share of reals at or above a threshold that this share of the fakes reaches."""
    enough = self.true_positive_rates >= true_positive_rate - 1e-12
    first = np.argmax(enough, axis=-1)[..., None]
    found = np.take_along_axis(self.false_positive_rates, first, -1)[..., 0]
    return np.where(enough.any(axis=-1), found, np.nan)

  def true_positive_rate_at(self, false_positive_rate: float) -> np.ndarray:
    """[...] the largest share of fakes at or above a threshold that so few reals reach."""
    allowed = self.false_positive_rates <= false_positive_rate + 1e-12
    last = np.maximum(allowed.sum(axis=-1, keepdims=True) - 1, 0)
    found = np.take_along_axis(self.true_positive_rates, last, -1)[..., 0]
    return np.where(allowed.any(axis=-1), found, np.nan)


def average_precision(labels: np.ndarray, scores: np.ndarray, *, weights: np.ndarray | None = None):
  """Area under the precision-recall curve as a sum of steps; see `Ranking.average_precision`."""
  return Ranking.of(labels, scores, weights=weights).average_precision()


def equal_error_rate(labels: np.ndarray, scores: np.ndarray, *, weights: np.ndarray | None = None):
  """The interpolated equal error rate; see `Ranking.equal_error_rate`."""
  return Ranking.of(labels, scores, weights=weights).equal_error_rate()


@dataclasses.dataclass(frozen=True)
class Confusion:
  """Weights of the four cases, each [...]; a fake that is called fake is a true positive."""

  true_positives: np.ndarray
  false_positives: np.ndarray
  true_negatives: np.ndarray
  false_negatives: np.ndarray

  @classmethod
  def of(cls, labels: np.ndarray, called: np.ndarray, *, weights: np.ndarray | None = None) -> "Confusion":
    """Counts cases.

    Args:
      labels: [example] 0 or 1.
      called: [example] whether each is called fake.
      weights: [..., example]; None: 1 each.
    """
    labels, called = np.asarray(labels, bool), np.asarray(called, bool)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    cases = (labels & called, ~labels & called, ~labels & ~called, labels & ~called)
    return cls(*(weights @ case.astype(np.float64) for case in cases))

  def table(self) -> list[list[int]]:
    """Whole counts: rows are real and fake, columns what they are called, real and fake."""
    cells = [[self.true_negatives, self.false_positives], [self.false_negatives, self.true_positives]]
    return [[round(float(cell)) for cell in row] for row in cells]

  @property
  def accuracy(self) -> np.ndarray:
    """[...] share of what is called by its name."""
    right = self.true_positives + self.true_negatives
    return _ratio(right, right + self.false_positives + self.false_negatives)

  @property
  def balanced_accuracy(self) -> np.ndarray:
    """[...] mean of the shares of both classes that are called by their name."""
    return (self.recall + 1 - self.false_positive_rate) / 2

  @property
  def precision(self) -> np.ndarray:
    """[...] share of fakes among what is called fake; NaN where nothing is."""
    return _ratio(self.true_positives, self.true_positives + self.false_positives)

  @property
  def recall(self) -> np.ndarray:
    """[...] share of the fakes that is called fake."""
    return _ratio(self.true_positives, self.true_positives + self.false_negatives)

  @property
  def false_positive_rate(self) -> np.ndarray:
    """[...] share of the reals that is called fake."""
    return _ratio(self.false_positives, self.false_positives + self.true_negatives)

  @property
  def f1(self) -> np.ndarray:
    """[...] harmonic mean of precision and recall; NaN without fakes, 0 where none of them is found."""
    found = _ratio(
      2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives
    )
    return np.where(self.true_positives + self.false_negatives > 0, found, np.nan)


def predictive_values(
  recall: np.ndarray, false_positive_rate: np.ndarray, *, prevalence: float
) -> tuple[np.ndarray, np.ndarray]:
  """What a call is worth where fakes are as frequent as `prevalence` says (Bayes).

  Args:
    recall, false_positive_rate: [...] at the threshold.
    prevalence: share of fakes among what comes in, 0 < prevalence < 1.

  Returns:
    (PPV, NPV), each [...]: the share of fakes among what is called fake, and of reals among the rest; NaN
    where nothing is called so.
  """
  recall, fpr = np.asarray(recall, np.float64), np.asarray(false_positive_rate, np.float64)
  found, alarms = prevalence * recall, (1 - prevalence) * fpr
  passed, missed = (1 - prevalence) * (1 - fpr), prevalence * (1 - recall)
  return _ratio(found, found + alarms), _ratio(passed, passed + missed)


def log_loss(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None):
  """[...] mean of -log(probability of the true class), in nats.

  Args:
    labels: [example] 0 or 1.
    probabilities: [example] of a fake, 0..1.
    weights: [..., example]; None: 1 each.
  """
  p = np.clip(np.asarray(probabilities, np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
  return _mean(-np.log(np.where(np.asarray(labels, bool), p, 1 - p)), weights)


def brier_score(labels: np.ndarray, probabilities: np.ndarray, *, weights: np.ndarray | None = None):
  """[...] mean squared distance of the probabilities from the labels (Brier 1950); as of `log_loss`."""
  return _mean((np.asarray(probabilities, np.float64) - np.asarray(labels, np.float64)) ** 2, weights)


@dataclasses.dataclass(frozen=True)
class Reliability:
  """Examples in bins of equal width of their probability, each [..., bin].

  Attributes:
    weight: of the examples in the bin.
    predicted: their mean probability; NaN in an empty bin.
    observed: the share of fakes among them; NaN in an empty bin.
  """

  weight: np.ndarray
  predicted: np.ndarray
  observed: np.ndarray

  @classmethod
  def of(
    cls,
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    bins: int = RELIABILITY_BINS,
  ) -> "Reliability":
    """Bins examples; the last bin holds probability 1 too. Arguments as of `log_loss`."""
    p, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.float64)
    weights = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    member = np.minimum((p * bins).astype(int), bins - 1)
    inside = (member[:, None] == np.arange(bins)).astype(np.float64)
    weight = weights @ inside
    return cls(
      weight=weight,
      predicted=_ratio((weights * p) @ inside, weight),
      observed=_ratio((weights * labels) @ inside, weight),
    )

  def expected_calibration_error(self) -> np.ndarray:
    """[...] mean distance of predicted and observed over bins, by weight (Naeini et al. 2015)."""
    gaps = np.where(self.weight > 0, np.abs(self.predicted - self.observed), 0.0)
    return _ratio((self.weight * gaps).sum(axis=-1), self.weight.sum(axis=-1))


def balanced(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
  """[..., example] the weights scaled so that both classes weigh the same; NaN where a class is missing."""
  labels = np.asarray(labels, bool)
  weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
  fakes, reals = (weights @ of_class.astype(np.float64) for of_class in (labels, ~labels))
  total = np.where((fakes > 0) & (reals > 0), (fakes + reals) / 2, np.nan)[..., None]
  return weights * np.where(labels, _ratio(total, fakes[..., None]), _ratio(total, reals[..., None]))


def bootstrap_weights(groups: np.ndarray, *, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
  """How often each example is drawn, whole groups with replacement; the draws of `bootstrap_interval`.

  Args:
    groups: [example] anything sortable.
    draws: resamples in all.
    seed: of the draws.

  Yields:
    [draw, example] float64, some draws at a time.
  """
  rng = np.random.default_rng(seed)
  _, member = np.unique(np.asarray(groups), return_inverse=True)
  count = int(member.max()) + 1
  # About 8 MB at a time: as many draws at once as keep the arrays in a cache or near it.
  at_once = max(1, min(draws, 1_000_000 // len(member)))
  for start in range(0, draws, at_once):
    drawn = [
      np.bincount(rng.integers(count, size=count), minlength=count)
      for _ in range(min(at_once, draws - start))
    ]
    yield np.stack(drawn)[:, member].astype(np.float64)


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
  """The 2.5 % and 97.5 % percentiles of resampled values, NaN left out; (NaN, NaN) where all are."""
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  if not len(values):
    return float("nan"), float("nan")
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)


def two_sided_p(differences: np.ndarray) -> float:
  """The bootstrap's two-sided p-value of "no difference": twice the smaller share of resamples on one side.

  Args:
    differences: [draw], NaN left out. One draw on each side is added, so that no p-value is 0.
  """
  differences = np.asarray(differences, np.float64)
  differences = differences[np.isfinite(differences)]
  count = len(differences)
  if not count:
    return float("nan")
  sides = [np.sum(differences <= 0) + 1, np.sum(differences >= 0) + 1]
  return float(min(1.0, 2 * min(sides) / (count + 1)))


def _mean(values: np.ndarray, weights: np.ndarray | None):
  weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
  return _ratio(weights @ values, weights.sum(axis=-1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, NaN where whole is 0."""
  part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
  part, whole = np.broadcast_arrays(part, whole)
  return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
