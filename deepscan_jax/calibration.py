"""From logits to probabilities and outcomes: fitted on validation data alone, stored with the model.

Three ways to a probability, all of them increasing, so that none changes a ranking or an outcome:

- "platt": sigmoid(scale * logit + offset) (Platt 1999, "Probabilistic outputs for support vector machines").
- "temperature": sigmoid(logit / temperature) (Guo et al. 2017, arXiv:1706.04599): one number.
- "isotonic": any increasing curve (Zadrozny and Elkan 2002, "Transforming classifier scores into accurate
  multiclass probability estimates"), for thousands of examples whose reliability curve is no sigmoid.

Each class counts half in all of them: a probability is one for equally frequent classes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

from deepscan_jax import metrics
from deepscan_jax.verdict import INCONCLUSIVE, LIKELY_AUTHENTIC, LIKELY_MANIPULATED, OutcomeRates, Thresholds

METHODS = ("platt", "temperature", "isotonic")
# The middle 95 % of the standard normal distribution, as in the intervals that evaluation reports.
_TWO_SIDED_95 = 1.959964
# Probabilities that are nearer to each other than this are one level.
_SAME_LEVEL = 1e-12


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How logits are read.

  Attributes:
    scale, offset: calibrated log odds = scale * logit + offset; scale is positive, so the order is kept.
      Beyond the ends of an isotonic curve, its slope is the scale.
    inconclusive: logit from which on the outcome is no longer likely_authentic. At most `even`, as
      `calibrate` sets it: nothing is called authentic that is more probably a fake than not.
    manipulated: logit from which on it is likely_manipulated.
    false_positive_rate: the rate that `manipulated` was set to, on the worst source of the validation split.
    method: one of METHODS.
    curve: (logit, log odds) pairs of an isotonic fit, both increasing; straight lines between them. Empty for
      the other methods.
    rates: how often each outcome was given to the validation split's real and fake examples; None of models
      that were calibrated before these were kept.

  Raises:
    ValueError: an unknown method, a scale that is not above 0, or a curve that does not rise.
  """

  scale: float
  offset: float
  inconclusive: float
  manipulated: float
  false_positive_rate: float
  method: str = "platt"
  curve: tuple[tuple[float, float], ...] = ()
  rates: OutcomeRates | None = None

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(f"Unknown calibration method {self.method!r}; there are {', '.join(METHODS)}.")
    if not self.scale > 0:
      raise ValueError(f"A calibration's scale must be above 0, got {self.scale:g}.")
    curve = tuple((float(logit), float(odds)) for logit, odds in self.curve)
    if bool(curve) != (self.method == "isotonic") or (np.diff(curve, axis=0) <= 0).any():
      raise ValueError(f"An isotonic calibration, and no other, has a rising curve; got {list(curve)[:4]}.")
    object.__setattr__(self, "curve", curve)

  @classmethod
  def from_dict(cls, facts: Mapping) -> "Calibration":
    """From what `to_dict` gave, now or in earlier versions.

    Raises:
      KeyError, TypeError, ValueError: it is no calibration.
    """
    rates = facts.get("rates")
    return cls(**{**facts, "rates": OutcomeRates.from_dict(rates) if rates else None})

  def to_dict(self) -> dict:
    """Plain values, as they come back from JSON; what says nothing is left out."""
    facts = {key: value for key, value in dataclasses.asdict(self).items() if value not in ((), None)}
    if self.curve:
      facts["curve"] = [list(point) for point in self.curve]
    if self.rates:
      facts["rates"] |= {"real": list(self.rates.real), "fake": list(self.rates.fake)}
    return facts

  @property
  def temperature(self) -> float:
    """By what a logit is divided, but for the offset."""
    return 1 / self.scale

  def score(self, logit: np.ndarray | float) -> np.ndarray | float:
    """Calibrated log odds of a fake; increasing."""
    logit = np.asarray(logit, np.float64)
    if not self.curve:
      return self.scale * logit + self.offset
    at, odds = np.array(self.curve).T
    beyond = np.minimum(logit - at[0], 0) + np.maximum(logit - at[-1], 0)
    return np.interp(logit, at, odds) + self.scale * beyond

  @property
  def even(self) -> float:
    """The logit whose calibrated probability is one half."""
    if not self.curve:
      return -self.offset / self.scale
    at, odds = np.array(self.curve).T
    beyond = np.minimum(-odds[0], 0) + np.maximum(-odds[-1], 0)
    return float(np.interp(0.0, odds, at) + beyond / self.scale)

  def probability(self, logit: np.ndarray | float) -> np.ndarray | float:
    """Calibrated probability of a fake, 0..1, where fakes and real ones are equally frequent."""
    return 1.0 / (1.0 + np.exp(-np.clip(self.score(logit), -500, 500)))

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

  logits = np.asarray(logits, np.float64)
  loss = _balanced_loss(labels)
  found = minimize(lambda x: loss(np.exp(x[0]) * logits + x[1]), np.zeros(2), method="BFGS")
  log_scale, offset = found.x
  return float(np.exp(log_scale)), float(offset)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
  """Temperature scaling (Guo et al. 2017): the temperature of least log loss of sigmoid(logit / temperature).

  Arguments, weights, smoothing and errors as of `fit_platt`.
  """
  from scipy.optimize import minimize_scalar

  logits = np.asarray(logits, np.float64)
  loss = _balanced_loss(labels)
  # The loss is convex in 1 / temperature, and so has one minimum along its logarithm too.
  found = minimize_scalar(lambda x: loss(np.exp(x) * logits), bounds=(-12, 12), method="bounded")
  return float(np.exp(-found.x))


def fit_isotonic(labels: np.ndarray, logits: np.ndarray) -> tuple[tuple[float, float], ...]:
  """Isotonic regression of labels on logits as a rising curve of (logit, log odds) points.

  Pool adjacent violators (Ayer et al. 1955, Ann. Math. Statist. 26(4)) makes blocks of equal probability;
  the points are the means of the blocks, joined by straight lines, so that unlike its steps the curve rises
  everywhere and tells all logits apart (as centred isotonic regression, Oron and Flournoy 2017, Stat.
  Biopharm. Res. 9(3)). Arguments, weights, smoothing and errors as of `fit_platt`: no block has log odds
  that are not finite.
  """
  targets, weights = _balanced_targets(labels)
  logits = np.asarray(logits, np.float64)
  at, place = np.unique(logits, return_inverse=True)
  own = np.bincount(place, weights)
  block, p = pool_adjacent_violators(np.bincount(place, weights * targets) / own, own)
  means = np.bincount(block, own * at) / np.bincount(block, own)
  return tuple(zip(means.tolist(), (np.log(p) - np.log1p(-p)).tolist(), strict=True))


def pool_adjacent_violators(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The non-decreasing sequence that is nearest to values in weighted squares.

  Args:
    values: [place] float.
    weights: [place] float, above 0.

  Returns:
    block: [place] int, of which block each place is, from 0 on; level: [block] float, rising.
  """
  sums: list[float] = []
  mass: list[float] = []
  length: list[int] = []
  for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
    sums.append(value * weight)
    mass.append(weight)
    length.append(1)
    # Equal neighbours are pooled too: levels rise.
    while len(sums) > 1 and sums[-2] / mass[-2] >= sums[-1] / mass[-1] - _SAME_LEVEL:
      for stack in (sums, mass, length):
        last = stack.pop()
        stack[-1] += last
  return np.repeat(np.arange(len(length)), length), np.array(sums) / np.array(mass)


def _balanced_targets(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Smoothed targets and weights [example] that give each class half; ValueError where one is missing."""
  labels = np.asarray(labels, bool)
  fakes, reals = labels.sum(), (~labels).sum()
  if not fakes or not reals:
    raise ValueError(f"Calibration needs both classes, got {fakes} fake and {reals} real examples.")
  targets = np.where(labels, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
  return targets, np.where(labels, 0.5 / fakes, 0.5 / reals)


def _balanced_loss(labels: np.ndarray) -> Callable[[np.ndarray], float]:
  """f(log odds [example]) -> log loss."""
  targets, weights = _balanced_targets(labels)
  return lambda z: float((weights * (np.logaddexp(0.0, z) - targets * z)).sum())


def calibrate(
  labels: np.ndarray,
  logits: np.ndarray,
  *,
  real_logits: np.ndarray,
  real_sources: np.ndarray,
  real_groups: np.ndarray,
  false_positive_rate: float = 0.05,
  inconclusive_rate: float = 0.2,
  method: str = "platt",
  groups: np.ndarray | None = None,
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
    inconclusive_rate: the same for `inconclusive`, unless a probability of one half lies below: from there on
      nothing is called authentic, however many real pictures that leaves open.
    method: of METHODS; thresholds are of logits, and the same with each.
    groups: [example] str of `labels`, for the intervals of the rates; None: each is a group of its own.

  Raises:
    ValueError: a class is missing, or an unknown method.
  """
  if method not in METHODS:
    raise ValueError(f"Unknown calibration method {method!r}; there are {', '.join(METHODS)}.")
  if method == "temperature":
    scale, offset = 1 / fit_temperature(labels, logits), 0.0
  else:
    scale, offset = fit_platt(labels, logits)
  curve = fit_isotonic(labels, logits) if method == "isotonic" else ()

  def worst(rate: float) -> float:
    thresholds = []
    for source in np.unique(real_sources):
      rows = real_sources == source
      shown = rate_to_show(rate, len(np.unique(real_groups[rows])))
      thresholds.append(metrics.threshold_at(real_logits[rows], false_positive_rate=shown))
    return max(thresholds)

  manipulated = worst(false_positive_rate)
  found = Calibration(
    scale=scale,
    offset=offset,
    inconclusive=manipulated,
    manipulated=manipulated,
    false_positive_rate=false_positive_rate,
    method=method,
    curve=curve,
  )
  inconclusive = min(worst(inconclusive_rate), found.even, manipulated)
  fakes = np.asarray(labels, bool)
  return dataclasses.replace(
    found,
    inconclusive=inconclusive,
    rates=OutcomeRates(
      real=_shares(real_logits, inconclusive, manipulated),
      fake=_shares(np.asarray(logits)[fakes], inconclusive, manipulated),
      real_groups=len(np.unique(real_groups)),
      fake_groups=int(fakes.sum()) if groups is None else len(np.unique(np.asarray(groups)[fakes])),
    ),
  )


def _shares(logits: np.ndarray, inconclusive: float, manipulated: float) -> tuple[float, float, float]:
  """Which share is called authentic, inconclusive and manipulated."""
  logits = np.asarray(logits, np.float64)
  called, above = float(np.mean(logits >= manipulated)), float(np.mean(logits >= inconclusive))
  return 1 - above, above - called, called


def rate_to_show(rate: float, groups: int) -> float:
  """The rate that independent groups may show so that their 95 % interval ends at `rate` or below.

  Its upper end by Wilson (1927) is `rate` where rate - z * sqrt(rate * (1 - rate) / groups) is seen. Where
  there are too few groups for any rate (73 for 5 %), the rate itself: the highest of so few scores are mostly
  chance, and would decide for all other sources.
  """
  shown = rate - _TWO_SIDED_95 * math.sqrt(rate * (1 - rate) / groups)
  return shown if shown >= 0 else rate
