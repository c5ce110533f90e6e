"""From logits to probabilities and outcomes: fitted on validation data alone, stored with the model."""

import dataclasses
import math

import numpy as np

from deepscan_jax import metrics
from deepscan_jax.verdict import INCONCLUSIVE, LIKELY_AUTHENTIC, LIKELY_MANIPULATED, Thresholds

# The middle 95 % of the standard normal distribution, as in the intervals that evaluation reports.
_TWO_SIDED_95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How logits are read.

  Attributes:
    scale, offset: probability = sigmoid(scale * logit + offset); scale is positive, so the order is kept.
    inconclusive: logit from which on the outcome is no longer likely_authentic.
    manipulated: logit from which on it is likely_manipulated.
    false_positive_rate: the rate that `manipulated` was set to, on the worst source of the validation split.
  """

  scale: float
  offset: float
  inconclusive: float
  manipulated: float
  false_positive_rate: float

  def probability(self, logit: np.ndarray | float) -> np.ndarray | float:
    """Calibrated probability of a fake, 0..1, where fakes and real ones are equally frequent."""
    return 1.0 / (1.0 + np.exp(-np.clip(self.scale * np.asarray(logit, np.float64) + self.offset, -500, 500)))

  def outcome(self, logit: float) -> str:
    """likely_authentic, inconclusive or likely_manipulated."""
    if logit >= self.manipulated:
      return LIKELY_MANIPULATED
    return INCONCLUSIVE if logit >= self.inconclusive else LIKELY_AUTHENTIC

  @property
  def thresholds(self) -> Thresholds:
    """The two thresholds as probabilities."""
    return Thresholds(
      inconclusive=float(self.probability(self.inconclusive)),
      manipulated=float(self.probability(self.manipulated)),
      false_positive_rate=self.false_positive_rate,
    )


def fit_platt(labels: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
  """Platt scaling (Platt 1999): scale > 0 and offset of least log loss of sigmoid(scale * logit + offset).

  Each class counts half in all, so the probability is one for equally frequent classes. Targets are smoothed
  as in Platt's paper, (n + 1) / (n + 2) and 1 / (n + 2), which keeps the fit finite on separable data.

  Args:
    labels: [example] 0 or 1.
    logits: [example] float.

  Raises:
    ValueError: one of the classes is missing.
  """
  from scipy.optimize import minimize  # Takes a while to import, and detect does without.

  labels, logits = np.asarray(labels, bool), np.asarray(logits, np.float64)
  fakes, reals = labels.sum(), (~labels).sum()
  if not fakes or not reals:
    raise ValueError(f"Calibration needs both classes, got {fakes} fake and {reals} real examples.")
  targets = np.where(labels, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
  weights = np.where(labels, 0.5 / fakes, 0.5 / reals)

  def loss(parameters: np.ndarray) -> float:
    z = np.exp(parameters[0]) * logits + parameters[1]
    return float((weights * (np.logaddexp(0.0, z) - targets * z)).sum())

  log_scale, offset = minimize(loss, np.zeros(2), method="BFGS").x
  return float(np.exp(log_scale)), float(offset)


def calibrate(
  labels: np.ndarray,
  logits: np.ndarray,
  *,
  real_logits: np.ndarray,
  real_sources: np.ndarray,
  real_groups: np.ndarray,
  false_positive_rate: float = 0.05,
  inconclusive_rate: float = 0.2,
) -> Calibration:
  """Fits a Calibration on validation scores.

  Thresholds do not carry between sources: what is exceeded by 5 % of one source's real pictures is exceeded
  by 20 % of another's. So the rate holds for the worst source, not for the mixture. Nor does a rate that is
  just held on some pictures hold on the next ones: see `rate_to_show`.

  Args:
    labels, logits: [example], for the probability.
    real_logits: [picture] of untouched real pictures, for the thresholds.
    real_sources, real_groups: [picture] str; pictures of a group (a person, an occasion) are not independent.
    false_positive_rate: share of real pictures of any source that may reach `manipulated`.
    inconclusive_rate: the same for `inconclusive`.
  """
  scale, offset = fit_platt(labels, logits)

  def worst(rate: float) -> float:
    thresholds = []
    for source in np.unique(real_sources):
      rows = real_sources == source
      shown = rate_to_show(rate, len(np.unique(real_groups[rows])))
      thresholds.append(metrics.threshold_at(real_logits[rows], false_positive_rate=shown))
    return max(thresholds)

  return Calibration(
    scale=scale,
    offset=offset,
    inconclusive=worst(inconclusive_rate),
    manipulated=worst(false_positive_rate),
    false_positive_rate=false_positive_rate,
  )


def rate_to_show(rate: float, groups: int) -> float:
  """The rate that independent groups may show so that their 95 % interval ends at `rate` or below.

  Its upper end by Wilson (1927) is `rate` where rate - z * sqrt(rate * (1 - rate) / groups) is seen. Where
  there are too few groups for any rate (73 for 5 %), the rate itself: the highest of so few scores are mostly
  chance, and would decide for all other sources.
  """
  shown = rate - _TWO_SIDED_95 * math.sqrt(rate * (1 - rate) / groups)
  return shown if shown >= 0 else rate
